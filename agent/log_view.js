'use strict';
// The agent's log as the step shows it. Peers' names and builds' words stand in it: the runner obeys none of it.

const { Follower } = require('./agent');

/** What is worth a line in quiet mode: warnings, and what the agent says to people. */
const IMPORTANT = /^nixtail: | WARN | ERROR /;

class LogView {
  /** @param {number} from what stands before this byte was shown before */
  constructor(file, mode, title, commands, from = 0) {
    this.follower = new Follower(file, from);
    this.isQuiet = mode === 'quiet';
    this.quote = commands.quote(mode === 'grouped' ? title : '');
  }

  /** Shows what is new. */
  look(options) {
    for (const line of this.follower.look(options)) {
      if (!this.isQuiet || IMPORTANT.test(line)) this.quote.line(line);
    }
  }

  /** Lets the step say something of its own in between. */
  aside(tell) {
    this.quote.aside(tell);
  }

  /** @returns {number} up to where it was shown */
  end() {
    this.look({ isLast: true });
    this.quote.end();
    return this.follower.seen;
  }
}

module.exports = { LogView };
