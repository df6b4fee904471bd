'use strict';
// How later steps' Nix finds the builders: what `. RUN/env` sets in a shell becomes variables of the job.

const fs = require('node:fs');
const path = require('node:path');
const { execFile } = require('node:child_process');
const { agentEnvironment } = require('./environment');

const PRINT = 'process.stdout.write(JSON.stringify(process.env))';
const DEADLINE_MS = 10_000;

/** The variables that `. RUN/env` sets, with what they are then. */
async function variablesOf(folder, env = process.env) {
  const file = path.join(folder.run, 'env');
  if (!fs.existsSync(file)) return {};
  const set = await new Promise((resolve, reject) => {
    const script = '. "$0" && exec "$@"';
    execFile('sh', ['-euc', script, file, process.execPath, '-e', PRINT], { env: agentEnvironment(env), timeout: DEADLINE_MS }, (error, stdout) => {
      if (error) reject(error);
      else resolve(JSON.parse(stdout));
    });
  });
  const isNew = ([name, value]) => /^(NIX|NIXTAIL)_/.test(name) && env[name] !== value;
  return Object.fromEntries(Object.entries(set).filter(isNew));
}

/** Adds lines to Nix's settings. */
const withSettings = (nixConfig, lines) => [nixConfig, lines].filter(Boolean).join('\n');

module.exports = { variablesOf, withSettings };
