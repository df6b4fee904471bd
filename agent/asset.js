'use strict';
// A release's binary: which one this machine takes, and that it is the one whose checksum stands in this repository.
// Whoever pins the action by its SHA has pinned the binary with it.

const fs = require('node:fs');
const path = require('node:path');
const { createHash } = require('node:crypto');
const { Failure } = require('./failure');

/** What the binary may have at most, in bytes. It has some 20 MiB. */
const MAX_BYTES = 200 * 1024 * 1024;
const DEADLINE_MS = 120_000;
const ATTEMPTS = 3;

const TARGETS = {
  'linux x64': 'x86_64-unknown-linux-musl',
  'linux arm64': 'aarch64-unknown-linux-musl',
  'darwin x64': 'x86_64-apple-darwin',
  'darwin arm64': 'aarch64-apple-darwin',
};

/**
 * The table of `checksums.json`: `tag`, the release, and `assets`, its files' SHA-256 by name.
 * @returns {{tag: string, name: string, sha256: string} | null} null: none for this machine
 */
function assetFor(table, platform = process.platform, arch = process.arch) {
  const target = TARGETS[`${platform} ${arch}`];
  const name = `nixtail-${target}`;
  const sha256 = target && table.assets[name];
  if (!sha256) return null;
  if (!/^[0-9a-f]{64}$/.test(sha256) || !/^[\w.-]+$/.test(table.tag)) {
    throw new Failure(`agent/checksums.json is broken at ${name}`, 'Report it: without a checksum nothing is started.', { exitCode: 78 });
  }
  return { tag: table.tag, name, sha256 };
}

const GITHUB = 'https://github.com';

/** Where a release of the action's own repository keeps it: at the server that runs the job, or at GitHub, from which that has it. */
function urlsOf(asset, env, github = GITHUB) {
  const servers = new Set([env.GITHUB_SERVER_URL || github, github]);
  const repository = env.GITHUB_ACTION_REPOSITORY || env.GITHUB_REPOSITORY;
  return [...servers].map((server) => `${server}/${repository}/releases/download/${asset.tag}/${asset.name}`);
}

/**
 * Downloads an asset to `folder` and checks it. What isn't what the table says is removed unstarted.
 * @returns {Promise<string>} the program's path
 */
async function downloadAsset(asset, folder, { env = process.env, fetch = globalThis.fetch, pause = 1000, github } = {}) {
  const file = path.join(folder, 'nixtail');
  let [url, ...others] = urlsOf(asset, env, github);
  let found;
  for (let attempt = 0; found === undefined; attempt++) {
    try {
      found = await save(await ask(url, fetch), file);
    } catch (error) {
      if (error instanceof Failure) {
        if (!error.isMissing || others.length === 0) throw error;
        [url, ...others] = others;
        continue;
      }
      if (attempt + 1 === ATTEMPTS) {
        throw new Failure(`${url} can't be downloaded: ${error.cause?.code ?? error.message}`,
          'Run the job again. Behind a proxy or without the internet, put the binary there yourself and name it with `source-binary`.', { exitCode: 69 });
      }
      await new Promise((resolve) => setTimeout(resolve, pause * 2 ** attempt));
    }
  }
  if (found !== asset.sha256) {
    fs.rmSync(file, { force: true });
    throw new Failure(`${url} has the SHA-256 ${found}, and this action was made for ${asset.sha256}`,
      'It was not started. Don\'t use it; report it where the action comes from (SECURITY.md).', { title: 'nixtail: wrong checksum', exitCode: 77 });
  }
  fs.chmodSync(file, 0o755);
  return file;
}

async function ask(url, fetch) {
  const answer = await fetch(url, { redirect: 'follow', signal: AbortSignal.timeout(DEADLINE_MS) });
  if (answer.ok && answer.body) return answer;
  await answer.body?.cancel();
  if (answer.status < 500 && answer.status !== 429) {
    throw new Failure(`${url} isn't there: the server answered ${answer.status}`,
      'Pin the action by the SHA of a release (the README names it), or name a binary with `source-binary`.', { title: 'nixtail: missing asset', exitCode: 69, isMissing: true });
  }
  throw new Error(`the server answered ${answer.status}`);
}

/** Writes the body to `file`, which nobody could have made before; gives its SHA-256. */
async function save(answer, file) {
  fs.rmSync(file, { force: true });
  const out = await fs.promises.open(file, 'wx', 0o600);
  const hash = createHash('sha256');
  let length = 0;
  try {
    for await (const chunk of answer.body) {
      length += chunk.length;
      if (length > MAX_BYTES) throw new Failure(`the binary is longer than ${MAX_BYTES} bytes`, 'It was not started.', { exitCode: 77 });
      hash.update(chunk);
      await out.writeFile(chunk);
    }
  } finally {
    await out.close();
  }
  return hash.digest('hex');
}

module.exports = { assetFor, downloadAsset, urlsOf };
