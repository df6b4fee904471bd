'use strict';
// Why a step fails, in the words that its user gets.

/** What failed and why; `next` says what to do. */
class Failure extends Error {
  /** @param {string} message @param {string} [next] @param {{title?: string, exitCode?: number, isMissing?: boolean}} [more] */
  constructor(message, next, { title = 'nixtail', exitCode = 1, isMissing = false } = {}) {
    super(message);
    Object.assign(this, { next, title, exitCode, isMissing });
  }

  /** All of it. */
  get words() {
    return this.next ? `${this.message}\n${this.next}` : this.message;
  }
}

module.exports = { Failure };
