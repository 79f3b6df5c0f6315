"""An export's model card, and its way to a hub: a stub on loopback that speaks as much of the hub's API as an upload takes."""

import base64
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import lifelike
import pytest
from small import ROOT, tiny_math

from exit_jax.errors import ConfigError
from exit_jax.training import card, push


class Hub(http.server.BaseHTTPRequestHandler):
    """Takes repositories and commits of files sent within the commit."""

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
        held, path = self.server.held, self.path.partition("?")[0]
        held["tokens"].add(self.headers.get("Authorization"))
        if self.server.refuses:
            return self.answer({"error": "You are not allowed"}, 403)
        if path == "/api/repos/create":
            held["made"].append(json.loads(sent))
            return self.answer({"url": f"{self.server.url}/me/model"})
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(sent)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    held["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{self.server.url}/me/model/commit/1", "commitOid": "1", "success": True})
        return self.answer({"valid": True, "errors": [], "warnings": []})

    def do_GET(self):
        self.answer({"id": "me/model", "sha": "0", "siblings": [], "private": True, "xetEnabled": False})

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.refuses = f"http://127.0.0.1:{server.server_port}", False
    server.held = {"made": [], "files": {}, "tokens": set()}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folders(tmp_path):
    """Return an export and its adapters, as far as an upload looks at them."""
    for name, files in {"export": ("README.md", "model.safetensors"), "adapter": ("adapter_config.json",)}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(f"{name}/{file}")
    return [tmp_path / "export", tmp_path / "adapter"]


def pushed(folders, url, tmp_path, token="hf_secret", **more):
    """Push in a process of its own, since the hub's address is read when its client is imported."""
    code = (
        "import pathlib, sys\nfrom exit_jax.errors import UserError\nfrom exit_jax.training import push\n"
        "try:\n    push.check('me/model'); print(push.push([*map(pathlib.Path, sys.argv[1:])], 'me/model'))\n"
        "except UserError as error:\n    print('error:', error)\n"
    )
    held = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env = held | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)} | more
    env |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", code, *map(str, folders)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def test_an_export_is_uploaded_to_a_private_repository(hub, folders, tmp_path):
    done = pushed(folders, hub.url, tmp_path)
    assert done.stdout.strip() == f"{hub.url}/me/model", done.stderr[-2000:]
    (made,) = hub.held["made"]
    assert (made["name"], made["organization"]) == ("model", "me")
    assert made.get("visibility") == "private" or made.get("private") is True  # the first from huggingface_hub 2
    names = ("export/README.md", "export/model.safetensors", "adapter/adapter_config.json")
    assert hub.held["files"] == {name.removeprefix("export/"): name.encode() for name in names}
    assert hub.held["tokens"] == {"Bearer hf_secret"}


def test_what_keeps_an_export_from_the_hub_is_one_line(hub, folders, tmp_path):
    assert "there is no token" in pushed(folders, hub.url, tmp_path, token="").stdout
    hub.refuses = True
    said = pushed(folders, hub.url, tmp_path).stdout
    assert said.startswith("error: --push me/model: ")
    assert "403" in said
    assert f"hf upload me/model {folders[0]}" in said
    gone = pushed(folders, "http://127.0.0.1:9", tmp_path).stdout
    assert gone.startswith("error: --push me/model: ")
    for name in ("model", "a/b/c", "me/mo del"):
        with pytest.raises(ConfigError, match=f"--push {name}: "):
            push.check(name)


def test_a_card_says_what_was_trained_and_what_it_came_to(tmp_path):
    workdir = lifelike.write_run(tmp_path / "run", splits=("math500", "minerva"), num_rows=7, num_chains=0)
    config = tiny_math(tmp_path / "data", algorithm__group_size=4)
    text = card.make(config, workdir, "# title\n\nwords\n")
    import yaml

    front, _, body = text.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert "base_model" not in yaml.safe_load(front)
    assert "license" not in yaml.safe_load(front)
    assert body.lstrip().startswith("# title")
    assert "7 iterations" in body
    assert "jax 0.10.2" in body
    assert "algorithm.group_size = 4" in body
    assert str(tmp_path) not in body, "where files were is not told"
    assert "| split | k = 0 | k = 1 | k = 2 | k = 4 | k = 8 | k = 16 |" in body
    assert "| math500 (500 tasks) | 0." in body
    shutil.rmtree(workdir)
    workdir.mkdir()
    assert "k = 0" not in card.make(config, workdir, "# title")
