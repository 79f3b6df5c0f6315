"""A process with servers of OpenEnv, for tests."""

import pathlib
import subprocess
import sys
import tempfile

SERVER = pathlib.Path(__file__).with_name("openenv_server.py")


class Server:
    """A process of ``openenv_server.py``."""

    def __init__(self, port=0):
        command = [sys.executable, "-W", "ignore", str(SERVER), str(port)]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        self.log.seek(0)
        assert line, self.log.read()
        self.port = int(line)

    def url(self, name):
        return f"http://127.0.0.1:{self.port}/{name}"

    def kill(self):
        self.process.kill()
        self.process.communicate()
        self.log.close()
