'use strict';
// watch UID FILE FOLDER…: writes down, many times a second, what processes of a user show of themselves to others, and which
// files in the folders hold a key. An environment counts where it is an agent's or of what an agent has started: GitHub gives
// inputs and tokens to steps in theirs.

const fs = require('node:fs');
const path = require('node:path');

const [uid, file, ...folders] = process.argv.slice(2);
// Of the devnet's making; private keys; JSON web tokens.
const KEY = /tskey-(client-[0-9a-f]{12}|auth-devnet)-|privkey:[0-9a-f]|eyJ[\w-]+\.eyJ[\w-]+\./;
/** What act keeps of actions, and the stores: nothing of it is a job's own. */
const NOT_OF_JOBS = new Set(['actions', 'store']);
const PAUSE_MS = 50;
/** A longer one is no file of ours. */
const MAX_FILE = 1024 * 1024;

const seen = new Set();

function tell(line) {
  if (seen.has(line)) return;
  seen.add(line);
  fs.appendFileSync(file, `${line}\n`);
}

/** The file's text; none of a process or a file that has gone. */
function read(name) {
  try {
    return fs.readFileSync(name, 'utf8');
  } catch {
    return '';
  }
}

function isOfAgent(id) {
  for (let process = id; process > 1; process = Number(/^PPid:\s*(\d+)/m.exec(read(`/proc/${process}/status`))?.[1] ?? 0)) {
    const [program, verb] = read(`/proc/${process}/cmdline`).split('\0');
    if (path.basename(program) === 'nixtail' && ['builder', 'coordinator'].includes(verb)) return true;
  }
  return false;
}

function lookAtProcesses() {
  for (const id of fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    if (!new RegExp(`^Uid:\\s*${uid}\\s`, 'm').test(read(`/proc/${id}/status`))) continue;
    const words = read(`/proc/${id}/cmdline`).split('\0');
    tell(`process: ${words.join(' ')}`);
    if (isOfAgent(Number(id))) tell(`environment of ${path.basename(words[0])}: ${read(`/proc/${id}/environ`).replaceAll('\0', ' ')}`);
  }
}

function lookAtFiles(folder) {
  let entries = [];
  try {
    entries = fs.readdirSync(folder, { withFileTypes: true });
  } catch {
    // It has gone.
  }
  for (const entry of entries) {
    const name = path.join(folder, entry.name);
    if (entry.isDirectory()) {
      if (!NOT_OF_JOBS.has(entry.name)) lookAtFiles(name);
    } else if (entry.isFile() && (fs.statSync(name, { throwIfNoEntry: false })?.size ?? 0) <= MAX_FILE && KEY.test(read(name))) {
      tell(`holds a key: ${name}`);
    }
  }
}

setInterval(() => {
  lookAtProcesses();
  folders.forEach(lookAtFiles);
}, PAUSE_MS);
