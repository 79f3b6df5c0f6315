"""Environments of verifiers as users write them: of one turn, of several, with a program of their own; and what is refused."""

import asyncio
import itertools
import sys
import types
from typing import ClassVar

import verifiers.v1 as vf

# a program that answers to nobody but the endpoint it is given: two requests, the second of which goes on from the first
PROGRAM = """
import json, sys, urllib.request
endpoint, secret, stream, flaw, prompt = sys.argv[1:]
def ask(messages, **more):
    body = {"model": "any", "messages": messages, "stream": stream == "stream", **more}
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{endpoint}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        if stream != "stream":
            return json.load(answer)["choices"][0]["message"]["content"]
        events = [line[5:] for line in answer.read().decode().splitlines() if line.startswith("data:")]
    return "".join(json.loads(e)["choices"][0]["delta"]["content"] for e in events if e.strip() != "[DONE]")
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
if flaw == "tools":
    ask(messages, tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}])
if flaw == "at once":
    import threading
    threading.Thread(target=ask, args=[messages], daemon=True).start()
    ask(messages)
said = ask(messages)
if flaw == "rewrites":
    said = said[:1]
if flaw == "role":
    messages.append({"role": "assistant", "content": said})
    ask([*messages, {"role": "system", "content": "Now stop."}, {"role": "user", "content": "Well?"}])
messages += [{"role": "assistant", "content": said}, {"role": "user", "content": f"You said {said}. Double it."}]
if flaw == "fails":
    sys.exit("the program fell over")
ask(messages)
"""


class ProgramConfig(vf.HarnessConfig):
    stream: bool = False
    flaw: str = ""


class Program(vf.Harness[ProgramConfig]):
    """A harness in a process of its own."""

    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        stream = "stream" if self.config.stream else "whole"
        arguments = [endpoint, secret, stream, self.config.flaw, data.prompt]
        return await runtime.run_program([sys.executable, "-c", PROGRAM, *arguments], {})


class SumData(vf.TaskData):
    total: int


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(self.data.total))

    @vf.reward(weight=0.25)
    async def by_a_program(self, trace: vf.Trace, runtime: vf.Runtime) -> float:
        done = await runtime.run(["sh", "-c", 'test "$1" -eq "$2"', "sh", trace.last_reply, str(self.data.total)], {})
        return float(done.exit_code == 0)


class SumConfig(vf.TasksetConfig):
    tasks: int = 40
    split: str = "train"


class Sums(vf.Taskset[SumTask, SumConfig]):
    """Single turn, some tasks with messages before the question."""

    def load(self):
        for i in range(self.config.tasks):
            a, b = i, 100 if self.config.split == "train" else 1000
            yield SumTask(SumData(prompt=f"{a} + {b} =", system_prompt="A number only.", total=a + b), self.config.task)


class GuessData(vf.TaskData):
    secret: int


class GuessTask(vf.Task[GuessData]):
    pass


class GuessEnv(vf.SingleAgentEnv):
    """Higher or lower, four guesses at most, while the house is open."""

    async def start(self):
        self.is_open = True

    async def stop(self):
        self.is_open = False

    async def run(self, task, agents):
        async with agents.agent.interaction(task) as talk:
            reply = await talk.turn("Guess a number from 1 to 9.")
            for left in (3, 2, 1, 0):
                assert self.is_open
                if reply.terminated or reply.last_reply == str(task.data.secret) or not left:
                    break
                low = int(reply.last_reply) < task.data.secret  # raises on what is no number
                reply = await talk.turn(
                    [{"role": "user", "content": text} for text in ("Higher." if low else "Lower.", f"{left} left.")]
                )
        talk.trace.record_reward("guessed", float(talk.trace.last_reply == str(task.data.secret)), 0.5)


class Guesses(vf.Taskset[GuessTask, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        for i in itertools.count():
            yield GuessTask(GuessData(secret=1 + i % 9), self.config.task)


class OddData(vf.TaskData):
    kind: str


class OddTask(vf.Task[OddData]):
    async def finalize(self, trace, runtime):
        if self.data.kind == "endless":
            await asyncio.sleep(60)

    @vf.reward
    async def reward(self, trace: vf.Trace) -> float:
        if self.data.kind == "raises":
            raise KeyError("gold")
        if self.data.kind == "slow":
            await asyncio.sleep(60)
        return 1.0


class Odd(vf.Taskset[OddTask, vf.TasksetConfig]):
    """Tasks with something amiss, by kind."""

    KINDS: ClassVar = {
        "picture": {
            "prompt": [
                vf.UserMessage(
                    content=[vf.ImageUrlContentPart(image_url=vf.ImageUrlSource(url="data:image/png;base64,AA=="))]
                )
            ]
        },
        "answered": {"prompt": [vf.UserMessage(content="Hi"), vf.AssistantMessage(content="Ho")]},
        "image": {"image": "python:3.11"},
        "files": {"artifacts": [vf.Artifact(source="answer.txt")]},
        "raises": {},
        "slow": {"timeout": vf.TaskTimeout(scoring=0.01)},
        "endless": {"timeout": vf.TaskTimeout(finalize=0.01)},
        "hasty": {"timeout": vf.TaskTimeout(agent=0.01)},
        "silent": {"prompt": None},
    }

    def load(self):
        for kind, more in self.KINDS.items():
            yield OddTask(OddData(**{"kind": kind, "prompt": "Go."} | more), self.config.task)


class Unrewarded(vf.Taskset[vf.Task, vf.TasksetConfig]):
    def load(self):
        return [vf.Task(vf.TaskData(prompt="Go."), self.config.task)]


class HiddenData(vf.TaskData):
    gold: object = None


class Hidden(vf.Taskset[vf.Task[HiddenData], vf.TasksetConfig]):
    """Tasks that JSON does not hold."""

    def load(self):
        return [vf.Task[HiddenData](HiddenData(prompt="Go.", gold=(1, 2)), self.config.task)]


class Look(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    def look(self) -> str:
        """Look around."""
        return "dark"


class LookTask(vf.Task[vf.TaskData]):
    @classmethod
    def toolsets(cls, config):
        return [Look(vf.ToolsetConfig())]


class Looks(vf.Taskset[LookTask, vf.TasksetConfig]):
    def load(self):
        return [LookTask(vf.TaskData(prompt="Look."), self.config.task)]


class DebateConfig(vf.EnvConfig):
    pro: vf.AgentConfig = vf.AgentConfig()
    con: vf.AgentConfig = vf.AgentConfig()


class Debate(vf.Env[DebateConfig]):
    async def run(self, task, agents):
        await agents.pro.run(task)
        await agents.con.run(task)


class Debates(Sums):
    pass


PACKAGES = {
    "xj-sums": (Sums,),
    "xj-program": (Sums, Program),
    "xj-guess": (Guesses, GuessEnv),
    "xj-odd": (Odd,),
    "xj-unrewarded": (Unrewarded,),
    "xj-hidden": (Hidden,),
    "xj-looks": (Looks,),
    "xj-debate": (Debates, Debate),
    "xj-v0": (),
}


def modules() -> dict[str, types.ModuleType]:
    """Return what stands for installed packages: modules by name, which export their classes as the package asks."""
    made = {}
    for name, classes in PACKAGES.items():
        module = made[name.replace("-", "_")] = types.ModuleType(name)
        vars(module).update({one.__name__: one for one in classes}, __all__=[one.__name__ for one in classes])
    return made
