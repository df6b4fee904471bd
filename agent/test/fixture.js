'use strict';
// What the tests share: a folder that goes, commands that are kept, a server, and a program that plays nixtail.

const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const { Commands } = require('../commands');

/** A folder for one test. */
function folderOf(test) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'nt-'));
  test.after(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Commands whose lines are kept. */
function keptCommands() {
  const lines = [];
  return Object.assign(new Commands((line) => lines.push(line)), { lines });
}

/** A server on loopback; gives its URL. */
async function serve(test, handler) {
  const server = http.createServer(handler);
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  test.after(() => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); }));
  return `http://127.0.0.1:${server.address().port}`;
}

/** The files that a runner gives a step, all empty. */
function runnerFiles(folder) {
  const env = {};
  for (const name of ['OUTPUT', 'ENV', 'PATH', 'STATE', 'STEP_SUMMARY']) {
    env[`GITHUB_${name}`] = path.join(folder, name);
    fs.writeFileSync(env[`GITHUB_${name}`], '');
  }
  return env;
}

/** Reads a runner's file of `name<<delimiter` pairs as the runner does. */
function pairs(file) {
  const lines = fs.readFileSync(file, 'utf8').split('\n');
  const read = {};
  while (lines.length > 1) {
    const [name, delimiter] = lines.shift().split('<<');
    const end = lines.indexOf(delimiter);
    read[name] = lines.splice(0, end).join('\n');
    lines.shift();
  }
  return read;
}

module.exports = { folderOf, keptCommands, pairs, runnerFiles, serve };
