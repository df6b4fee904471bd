'use strict';
// The files by which a step tells the runner of outputs, variables, folders for PATH, state and its summary.

const fs = require('node:fs');
const { randomUUID } = require('node:crypto');

/** What the runner takes of one step's summary, in bytes; of a longer one it takes nothing. */
const MAX_SUMMARY = 1024 * 1024;

class RunnerFiles {
  constructor(env = process.env) {
    this.env = env;
  }

  output(name, value) { this.#pair('GITHUB_OUTPUT', name, value); }
  variable(name, value) { this.#pair('GITHUB_ENV', name, value); }
  /** Comes back as `STATE_name` in this step's post. */
  state(name, value) { this.#pair('GITHUB_STATE', name, value); }

  path(folder) {
    if (/[\r\n]/.test(folder)) throw new Error(`a folder with a line break can't go onto PATH: ${JSON.stringify(folder)}`);
    this.#append('GITHUB_PATH', `${folder}\n`);
  }

  /** Adds Markdown to the step's summary, as much of it as the runner takes. */
  summary(markdown) {
    const file = this.env.GITHUB_STEP_SUMMARY;
    const before = file && fs.existsSync(file) ? fs.statSync(file).size : 0;
    const left = MAX_SUMMARY - before - 200;
    let text = Buffer.from(`${markdown.trimEnd()}\n`);
    if (text.length > left) {
      const cut = text.subarray(0, Math.max(left, 0)).toString('utf8');
      text = Buffer.from(`${cut.slice(0, cut.lastIndexOf('\n') + 1)}\n\nThe rest is too long for GitHub.\n`);
    }
    this.#append('GITHUB_STEP_SUMMARY', text);
  }

  #pair(file, name, value) {
    const text = String(value);
    // A random delimiter: no value can end itself early and add a line of its own.
    const delimiter = `nixtail-${randomUUID()}`;
    this.#append(file, `${name}<<${delimiter}\n${text}\n${delimiter}\n`);
  }

  #append(variable, text) {
    // Without a runner, as when the launcher is tried by hand, there is nobody to tell.
    if (this.env[variable]) fs.appendFileSync(this.env[variable], text);
  }
}

module.exports = { RunnerFiles };
