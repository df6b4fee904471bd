'use strict';
const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { execFileSync } = require('node:child_process');
const { test } = require('node:test');
const { folderOf } = require('./fixture');

/** What machine.sh decides, and what it says. */
function decide(t, env, programs = []) {
  const folder = folderOf(t);
  const bin = path.join(folder, 'bin');
  fs.mkdirSync(bin);
  for (const program of ['bash', 'cat', 'grep']) fs.symlinkSync(execFileSync('sh', ['-c', `command -v ${program}`], { encoding: 'utf8' }).trim(), path.join(bin, program));
  for (const program of programs) fs.writeFileSync(path.join(bin, program), '#!/bin/sh\n', { mode: 0o755 });
  const output = path.join(folder, 'output');
  const wanted = { ROLE: 'builder', HAS_KEY: 'true', HAS_IDENTITY: 'false', FREE_DISK_SPACE: 'true', INSTALL_NIX: 'true', CACHE: 'true', ...env };
  const said = execFileSync(path.join(bin, 'bash'), [path.join(__dirname, '..', 'machine.sh')], { env: { PATH: bin, GITHUB_OUTPUT: output, ...wanted }, encoding: 'utf8' });
  const lines = fs.readFileSync(output, 'utf8').trim().split('\n').map((line) => line.split('='));
  return { ...Object.fromEntries(lines), said };
}

const HOSTED = { RUNNER_OS: 'Linux', RUNNER_ENVIRONMENT: 'github-hosted' };

test('Nix is installed where there is none, unless it isn\'t wanted', (t) => {
  assert.equal(decide(t, {})['install-nix'], 'true');
  assert.equal(decide(t, {})['nix-was-there'], 'false');
  const there = decide(t, {}, ['nix']);
  assert.deepEqual([there['install-nix'], there['nix-was-there']], ['false', 'true']);
  assert.match(there.said, /installs no Nix: .*nix is there already/);
  assert.equal(decide(t, { INSTALL_NIX: 'false' })['install-nix'], 'false');
  assert.equal(decide(t, HOSTED).cache, 'true');
  assert.equal(decide(t, { ...HOSTED, CACHE: 'false' }).cache, 'false');
  // Its daemon has ports of its own: two jobs of one machine would share it.
  assert.match(decide(t, { RUNNER_ENVIRONMENT: 'self-hosted' }).said, /no cache of the workflow's: this is none of GitHub's machines/);
});

test('room is made on GitHub\'s own Linux machines alone', (t) => {
  for (const [env, why] of [
    [{ ...HOSTED, FREE_DISK_SPACE: 'false' }, /it isn't wanted/],
    [{ ...HOSTED, RUNNER_OS: 'macOS' }, /none of GitHub's Linux machines/],
    [{ ...HOSTED, RUNNER_ENVIRONMENT: 'self-hosted' }, /none of GitHub's Linux machines/],
    [{}, /none of GitHub's Linux machines/],
  ]) {
    const decided = decide(t, env);
    assert.equal(decided['free-disk-space'], 'false');
    assert.match(decided.said, why);
  }
  // Where a Nix is there, or wanted from elsewhere, never.
  assert.equal(decide(t, HOSTED, ['nix', 'sudo'])['free-disk-space'], 'false');
  assert.equal(decide(t, { ...HOSTED, INSTALL_NIX: 'false' }, ['sudo'])['free-disk-space'], 'false');
});

test('a builder that can\'t log in prepares nothing', (t) => {
  const none = { HAS_KEY: 'false' };
  const vain = decide(t, none);
  assert.deepEqual([vain['install-nix'], vain.cache], ['false', 'false']);
  assert.match(vain.said, /nothing to log in with/);
  assert.equal(decide(t, { ...none, ROLE: 'coordinator' })['install-nix'], 'true');
  assert.equal(decide(t, { ...none, HAS_IDENTITY: 'true' })['install-nix'], 'false');
  assert.equal(decide(t, { ...none, HAS_IDENTITY: 'true', ACTIONS_ID_TOKEN_REQUEST_TOKEN: 'x' })['install-nix'], 'true');
});

test('inputs are compared, not run', (t) => {
  const decided = decide(t, { FREE_DISK_SPACE: '$(touch x)', INSTALL_NIX: 'true; touch x', CACHE: 'true\ninstall-nix=true' });
  assert.deepEqual([decided['free-disk-space'], decided['install-nix'], decided.cache], ['false', 'false', 'false']);
});
