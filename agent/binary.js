'use strict';
// Where the program comes from: a file that was named, a checked release asset, or this repository's own source.

const fs = require('node:fs');
const path = require('node:path');
const { spawn } = require('node:child_process');
const { agentEnvironment } = require('./environment');
const { assetFor, downloadAsset } = require('./asset');
const { Failure } = require('./failure');

/** The root of the action's repository. */
const SOURCE = path.resolve(__dirname, '..');

/**
 * Puts the program into `folder`.
 * @returns {Promise<string>} its absolute path
 */
async function findBinary(inputs, folder, { commands, env = process.env, table, fetch, pause, github } = {}) {
  if (inputs.sourceBinary) return link(named(inputs.sourceBinary, env), folder);
  const checksums = table ?? JSON.parse(fs.readFileSync(path.join(__dirname, 'checksums.json'), 'utf8'));
  const asset = assetFor(checksums);
  if (asset) return downloadAsset(asset, folder, { env, fetch, pause, github });
  return link(await build(folder, { commands, env }), folder);
}

function named(text, env) {
  const file = path.resolve(env.GITHUB_WORKSPACE || '.', text);
  try {
    fs.accessSync(file, fs.constants.X_OK);
    if (!fs.statSync(file).isFile()) throw new Error('it is no file');
  } catch (error) {
    throw new Failure(`source-binary ${file} can't be started: ${error.message}`, 'Name an executable file, from the root of the file system or from the workspace on.', { exitCode: 78 });
  }
  return file;
}

/** Under its own name, so that it can be on PATH. */
function link(file, folder) {
  const name = path.join(folder, 'nixtail');
  fs.symlinkSync(file, name);
  return name;
}

/** There is no asset for this machine, or no release yet. What is built is what the action's SHA names. */
async function build(folder, { commands, env }) {
  commands.notice('nixtail: built from source', `agent/checksums.json names no binary for ${process.platform} on ${process.arch}, so cargo builds it now, which takes some minutes. \`source-binary\` saves them.`);
  const target = path.join(folder, '..', 'build');
  const args = ['build', '--release', '--locked', '--package', 'nixtail', '--no-default-features', '--features', 'cli', '--target-dir', target];
  const quote = commands.quote('cargo build');
  const code = await new Promise((resolve, reject) => {
    const environment = agentEnvironment(env, { CARGO_HOME: env.CARGO_HOME, RUSTUP_HOME: env.RUSTUP_HOME, RUSTUP_TOOLCHAIN: env.RUSTUP_TOOLCHAIN });
    const cargo = spawn('cargo', args, { cwd: SOURCE, env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [cargo.stdout, cargo.stderr]) require('node:readline').createInterface({ input: stream }).on('line', quote.line);
    cargo.once('error', reject);
    cargo.once('close', resolve);
  }).catch((error) => {
    if (error.code === 'ENOENT') return 'it is not installed';
    throw error;
  }).finally(quote.end);
  if (code !== 0) {
    throw new Failure(`there is no binary for this machine, and cargo can't build one: ${code === null ? 'it was ended' : typeof code === 'number' ? `exit code ${code}` : code}`,
      'Install Rust 1.95 or newer before this step, pin the action by the SHA of a release, or name a binary with `source-binary`.', { exitCode: 78 });
  }
  return path.join(target, 'release', 'nixtail');
}

module.exports = { findBinary };
