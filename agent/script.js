'use strict';
// How main and post begin and end as processes.

const http = require('node:http');

/** What may still be under way when a script is done: a connection that is kept for nobody. */
const PATIENCE_MS = 2000;

/**
 * Runs a script to its end and sets the exit code that `work` resolves to. The process ends by itself, so that all is
 * written: pipes take their time on macOS.
 */
function run(work) {
  // Where this Node can: the proxies of the environment count, as they do for nixtail itself.
  http.setGlobalProxyFromEnv?.();
  work().then((code) => {
    process.exitCode = code;
    setTimeout(() => process.exit(), PATIENCE_MS).unref();
  });
}

module.exports = { run };
