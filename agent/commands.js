'use strict';
// Workflow commands: what a line on stdout tells the runner, and how text that isn't ours is kept from doing so.
// Format: https://docs.github.com/actions/reference/workflow-commands-for-github-actions; actions/runner ActionCommand.cs.

const { randomUUID } = require('node:crypto');

/** A line as a command's value. */
const value = (text) => String(text).replace(/%/g, '%25').replace(/\r/g, '%0D').replace(/\n/g, '%0A');
/** A line as a command's property. */
const property = (text) => value(text).replace(/:/g, '%3A').replace(/,/g, '%2C');

/** Text without control characters and what is never seen, line breaks excepted. */
const plain = (text) => String(text).replace(/\r\n?/g, '\n').replace(/(?!\n)[\p{Cc}\p{Cf}\p{DI}\u2028\u2029]/gu, '');

/**
 * One line for the log that the runner takes for nothing but text. It looks for `::` at a line's beginning, and for the
 * older `##[` anywhere; and it compares as people do, for whom what is invisible isn't there.
 */
const harmless = (line) => plain(line).replace(/\n/g, ' ').replace(/^\s*::/, ' : :').replace(/##(?=\[)/g, '# #');

class Commands {
  /** @param {(line: string) => void} write takes one line without its end */
  constructor(write = (line) => process.stdout.write(`${line}\n`)) {
    this.write = write;
  }

  /** A line of our own. */
  say(text) {
    for (const line of String(text).split('\n')) this.write(harmless(line));
  }

  /** Registers a secret: from here on each log shows `***` for it. The runner masks line by line, and so do we. */
  mask(secret) {
    for (const line of String(secret).split(/[\r\n]+/)) if (line.trim() !== '') this.write(`::add-mask::${value(line.trim())}`);
  }

  notice(title, text) { this.#annotate('notice', title, text); }
  warning(title, text) { this.#annotate('warning', title, text); }
  error(title, text) { this.#annotate('error', title, text); }

  #annotate(kind, title, text) {
    this.write(`::${kind} title=${property(plain(title).replace(/\n/g, ' '))}::${value(plain(text).trim())}`);
  }

  /**
   * To show text of others: from its first line until `end` the runner obeys nothing that stands in it.
   * @returns {{line: (text: string) => void, aside: (tell: (commands: Commands) => void) => void, end: () => void}}
   */
  quote(title) {
    // The runner masks the token, so that nothing which was shown before can name it.
    const token = randomUUID();
    let isBegun = false;
    const stop = () => this.write(`::stop-commands::${token}`);
    const resume = () => this.write(`::${token}::`);
    const begin = () => {
      isBegun = true;
      if (title) this.write(`::group::${value(plain(title))}`);
      stop();
    };
    return {
      line: (text) => {
        if (!isBegun) begin();
        this.write(harmless(text));
      },
      aside: (tell) => {
        if (isBegun) resume();
        tell(this);
        if (isBegun) stop();
      },
      end: () => {
        if (!isBegun) return;
        isBegun = false;
        resume();
        if (title) this.write('::endgroup::');
      },
    };
  }
}

module.exports = { Commands, harmless, plain };
