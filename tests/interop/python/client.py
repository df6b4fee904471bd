"""An SSH client as other people's tools have it: paramiko or asyncssh, told what to do by arguments.

    client.py paramiko|asyncssh PORT HOST_KEY USER none|key|password COMMAND ANSWER

HOST_KEY is the key that must be shown, in base64. The command gets what is on stdin, and EOF once it has said ANSWER bytes
(0: at once). What came of it is one JSON object on stdout: `code`, `stdout` and `stderr` (base64), or `refused` (how the library put it), and `banner` in any case.
"""

import asyncio
import base64
import contextlib
import json
import socket
import sys
import threading

TIMEOUT = 60


def by_paramiko(port, host_key, user, method, command, answer, data):
    import paramiko

    transport = paramiko.Transport(socket.create_connection(("127.0.0.1", port), TIMEOUT))
    banner = lambda: (transport.get_banner() or b"").decode()
    try:
        transport.start_client(timeout=TIMEOUT)
        assert transport.get_remote_server_key().get_base64() == host_key, "another host key"
        if method == "none":
            transport.auth_none(user)
        elif method == "key":
            transport.auth_publickey(user, paramiko.ECDSAKey.generate())
        else:
            transport.auth_password(user, "any", fallback=False)
        channel = transport.open_session(timeout=TIMEOUT)
    except (paramiko.SSHException, EOFError) as error:
        return {"refused": f"{type(error).__name__}: {error}", "banner": banner()}
    channel.settimeout(TIMEOUT)
    channel.exec_command(command)

    answered = threading.Event()

    def send():
        channel.sendall(data)
        answered.wait(TIMEOUT)
        channel.shutdown_write()

    threading.Thread(target=send, daemon=True).start()
    errors = []
    reader = threading.Thread(target=lambda: errors.append(channel.makefile_stderr("rb").read()))
    reader.start()
    output = b""
    while True:
        if len(output) >= answer:
            answered.set()
        if not (piece := channel.recv(65536)):
            break
        output += piece
    answered.set()
    reader.join(TIMEOUT)
    result = {"code": channel.recv_exit_status(), "stdout": output, "stderr": errors[0], "banner": banner()}
    transport.close()
    return result


async def by_asyncssh(port, host_key, user, method, command, answer, data):
    import asyncssh

    banners, ends = [], []

    class Client(asyncssh.SSHClient):
        def connection_lost(self, error):
            ends.append(error)

        def auth_banner_received(self, message, language):
            banners.append(message)

    known = asyncssh.import_known_hosts(f"* ssh-ed25519 {host_key}\n")
    options = {"username": user, "known_hosts": known, "config": None, "agent_path": None}
    if method == "key":
        options |= {"client_keys": [asyncssh.generate_private_key("ssh-ed25519")], "preferred_auth": ["publickey"]}
    elif method == "password":
        options |= {"client_keys": None, "password": "any", "preferred_auth": ["password"]}
    else:
        options |= {"client_keys": None, "preferred_auth": ["none"]}
    try:
        connection, _ = await asyncssh.create_connection(Client, "127.0.0.1", port, **options)
        async with connection:
            process = await connection.create_process(command, encoding=None)
            errors = asyncio.create_task(process.stderr.read())
            # A command that ends at once closes the channel before it has everything.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(data)
            output = await process.stdout.readexactly(answer)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write_eof()
            output += await process.stdout.read()
            await process.wait_closed()
    except (asyncssh.Error, asyncio.IncompleteReadError, OSError) as error:
        return {"refused": f"{type(error).__name__}: {error}, {ends}", "banner": "".join(banners)}
    return {
        "code": process.exit_status,
        "stdout": output,
        "stderr": await errors,
        "banner": "".join(banners),
    }


def main():
    library, port, host_key, user, method, command, answer = sys.argv[1:]
    data = sys.stdin.buffer.read()
    arguments = (int(port), host_key, user, method, command, int(answer), data)
    if library == "paramiko":
        result = by_paramiko(*arguments)
    else:
        result = asyncio.run(asyncio.wait_for(by_asyncssh(*arguments), TIMEOUT))
    encoded = {name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in result.items()}
    json.dump(encoded, sys.stdout)


main()
