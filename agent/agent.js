'use strict';
// The agent: a process of its own session that outlives its step, and is watched by its step while that lasts.

const fs = require('node:fs');
const { spawn, execFile } = require('node:child_process');
const { setTimeout: sleep } = require('node:timers/promises');

/** How often log and ready line are looked at. */
const GLANCE_MS = 100;
/** How long an agent may take to leave the tailnet, beside its builds: it gives up after some 20 s by itself. */
const LEAVE_MS = 45_000;
/** What a command about the agent may answer, in bytes: a status with hundreds of peers. */
const MAX_ANSWER = 16 * 1024 * 1024;

/** An agent that this process has started. */
class Agent {
  /** Starts it. Its messages go to a file: a pipe of the step's would end it, or keep the step from ending. */
  static start(binary, args, { folder, env, stdin }) {
    const log = fs.openSync(folder.log, 'a', 0o600);
    const ready = fs.openSync(folder.ready, 'a', 0o600);
    const child = spawn(binary, args, { detached: true, env, cwd: folder.root, stdio: ['pipe', ready, log] });
    fs.closeSync(log);
    fs.closeSync(ready);
    // One that is gone before it has read is told of by its exit.
    child.stdin.on('error', () => {});
    child.stdin.end(stdin ?? '');
    return new Agent(child, folder);
  }

  constructor(child, folder) {
    this.child = child;
    this.folder = folder;
    /** Resolves with how it ended: `{ code, signal, error }`. */
    this.ended = new Promise((resolve) => {
      child.once('error', (error) => resolve({ code: null, signal: null, error }));
      child.once('exit', (code, signal) => resolve({ code, signal }));
    });
    /** How long it may take to leave after a signal: what it drains, and some 20 s. */
    this.patience = LEAVE_MS;
    this.ended.then((end) => {
      this.end = end;
      clearTimeout(this.last);
    });
  }

  /** Sends a signal. The second one would end it at once, without a logout: so there is only the first. */
  tell(signal) {
    if (this.told || this.end) return;
    this.told = signal;
    this.child.kill(signal);
    // One that hangs heeds none of it.
    this.last = setTimeout(() => this.child.kill('SIGKILL'), this.patience);
  }

  /** Waits until it is ready or has ended; calls `look` from time to time. @returns {Promise<string|null>} the ready line */
  async ready(look) {
    for (;;) {
      const line = read(this.folder.ready).split('\n').find((text) => text.startsWith('ready '));
      look();
      if (line !== undefined) return line;
      if (this.end) return null;
      await sleep(GLANCE_MS);
    }
  }

  /** Waits for its end; calls `look` from time to time. */
  async wait(look) {
    while (!this.end) {
      look();
      await sleep(GLANCE_MS);
    }
    look();
    return this.end;
  }

  /** Lets this process end before it does. */
  leave() {
    this.child.unref();
    this.child.stdin.destroy();
  }
}

/** Follows a file that grows: each call of `look` gives the lines that are new and whole, the last one at the end, too. */
class Follower {
  #at;
  #rest = '';
  #decoder = new TextDecoder();

  /** @param {number} from what stands before this byte isn't new */
  constructor(file, from = 0) {
    this.file = file;
    this.#at = from;
  }

  /** Up to which byte all lines were given. */
  get seen() {
    return this.#at;
  }

  look({ isLast = false } = {}) {
    const file = this.#open();
    if (file !== undefined) {
      const chunk = Buffer.alloc(64 * 1024);
      for (let length; (length = fs.readSync(file, chunk, 0, chunk.length, this.#at)) > 0;) {
        this.#at += length;
        this.#rest += this.#decoder.decode(chunk.subarray(0, length), { stream: true });
      }
      fs.closeSync(file);
    }
    const lines = this.#rest.split('\n');
    this.#rest = isLast ? '' : lines.pop();
    return isLast ? lines.filter((line, at) => at < lines.length - 1 || line !== '') : lines;
  }

  #open() {
    try {
      return fs.openSync(this.file, 'r');
    } catch {
      return undefined;
    }
  }
}

/** Runs a command of nixtail's about the agent at `folder.socket`. Never throws. */
function ask(binary, words, folder, { env, timeout }) {
  return new Promise((resolve) => {
    const options = { env, timeout, maxBuffer: MAX_ANSWER, cwd: folder.root, killSignal: 'SIGKILL' };
    execFile(binary, [...words, `--socket=${folder.socket}`], options, (error, stdout, stderr) => {
      resolve({ code: error ? (error.code ?? null) : 0, stdout, stderr, error });
    }).stdin?.end();
  });
}

function read(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

/**
 * The last words of an agent: its message, and what it advises. It says them as `nixtail: MESSAGE`, advice indented below.
 * @returns {{message: string, next: string} | null}
 */
function lastWords(log) {
  const lines = log.trimEnd().split('\n');
  const at = lines.findLastIndex((line) => line.startsWith('nixtail: '));
  if (at < 0) return null;
  const next = lines.slice(at + 1).filter((line) => line.startsWith('  ')).map((line) => line.trim());
  return { message: lines[at].slice('nixtail: '.length), next: next.join('\n') };
}

module.exports = { Agent, Follower, ask, lastWords, read };
