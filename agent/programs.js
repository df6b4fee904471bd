'use strict';
// What later steps find on PATH: nixtail itself, and the command by which a coordinator lets its builders go.

const fs = require('node:fs');
const path = require('node:path');

const quote = (word) => `'${word.replace(/'/g, `'\\''`)}'`;

/**
 * `stop-nix-builders`, as the action before had it. What came of the run is written down first, so that a later step can
 * upload it: when the agent does so at its end, it is too late for that.
 */
function writePrograms(folder, role) {
  if (role !== 'coordinator') return;
  const nixtail = quote(path.join(folder.bin, 'nixtail'));
  const [socket, summary] = [folder.socket, folder.summary].map(quote);
  const lines = [
    '#!/bin/sh',
    '# Ends the builders of this job. Done before, it does nothing.',
    `mkdir -p ${summary} &&`,
    `  ${nixtail} summary --socket ${socket} --markdown >${summary}/summary.md 2>/dev/null &&`,
    `  ${nixtail} summary --socket ${socket} --json >${summary}/summary.json 2>/dev/null &&`,
    `  ${nixtail} summary --socket ${socket} --svg ${summary}/timeline.svg 2>/dev/null || true`,
    `exec ${nixtail} stop-builders --socket ${socket} "$@"`,
    '',
  ];
  fs.writeFileSync(path.join(folder.bin, 'stop-nix-builders'), lines.join('\n'), { mode: 0o755 });
}

/** Where a job goes on alone, the same commands are there, and have nothing to do. */
function writeIdlePrograms(folder) {
  const lines = ['#!/bin/sh', 'echo "nixtail: GitHub gave this job no secrets, so there are no builders and no agent"', ''];
  for (const name of ['nixtail', 'stop-nix-builders']) fs.writeFileSync(path.join(folder.bin, name), lines.join('\n'), { mode: 0o755 });
}

module.exports = { writeIdlePrograms, writePrograms };
