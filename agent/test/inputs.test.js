'use strict';
const assert = require('node:assert/strict');
const { test } = require('node:test');
const { readInputs } = require('../inputs');
const { agentArguments } = require('../arguments');
const { hostnameOf, runOf } = require('../names');
const { Folder } = require('../folder');

const folder = new Folder('/t/nixtail-x');
const credential = { args: ['--auth-key=file:-'] };
const read = (given) => readInputs(Object.fromEntries(Object.entries(given).map(([name, value]) => [`INPUT_${name.toUpperCase()}`, value])));
const words = (given, env = { GITHUB_RUN_ID: '77', GITHUB_RUN_ATTEMPT: '2', GITHUB_JOB: 'build' }) =>
  agentArguments(read(given), folder, { credential, env });

test('a builder of the original action\'s inputs', () => {
  assert.deepEqual(words({
    tailscale_authkey: 'secret', tailscale_hostname: 'nix-builder-a1-ubuntu-24.04-1', tailscale_tags: 'tag:nix-ci-builder', role: 'builder',
  }), ['builder', '-v', '--hostname=nix-builder-a1-ubuntu-24.04-1', '--tags=tag:nix-ci-builder', '--socket=/t/nixtail-x/sock', '--login=nix',
    '--auth-key=file:-', '--run=77-2', '--idle-timeout=300000ms']);
});

test('a coordinator that is given names takes builders of any run', () => {
  const given = words({ role: 'coordinator', builders: 'b-24.04-1  b-2,', tailscale_hostname: 'c', builder_timeout: '100' });
  assert.ok(given.includes('--builders=b-24.04-1 b-2'));
  assert.ok(given.includes('--wait=160000ms'));
  assert.ok(!given.some((word) => word.startsWith('--run')), given.join(' '));
});

test('a coordinator that is given a number, or nothing, takes those of its run', () => {
  assert.ok(words({ role: 'coordinator', builders: '4', wait: '5m' }).join(' ').includes('--builders=4 --run=77-2 --wait=300000ms'));
  const none = words({ role: 'coordinator', 'min-builders': '2' });
  assert.ok(none.includes('--run=77-2') && none.includes('--min-builders=2') && !none.join(' ').includes('--builders='));
});

test('settings of Nix, which may hold tokens, stand on no command line', () => {
  const given = words({ extra_nix_config: 'access-tokens = github.com=ghp_x' }).join(' ');
  assert.ok(given.includes('--extra-nix-config=file:/t/nixtail-x/nix.conf') && !given.includes('ghp_x'));
});

test('hostile and mistaken inputs are refused, with their name', () => {
  for (const [name, value] of [
    ['role', 'builder\n::error::x'], ['builders', 'a;b'], ['builders', 'a\u0000'], ['builders', '$(id)'], ['builders', '`id`'], ['builders', '**b**'],
    ['login-server', 'javascript:x'], ['login-server', 'http://a b'], ['index', '1 2'], ['run', '-x'], ['run', 'a/../b'], ['run', '*'.repeat(9)],
    ['min-builders', '0'], ['max-jobs', '-1'], ['wait', 'soon'], ['builder_timeout', '3 weeks'], ['background', 'yes'], ['unclaimed', 'maybe'],
    ['mode', '--login=root'], ['transport', 'tcp'], ['login', '--x'], ['login', 'a b'], ['log-mode', 'loud'], ['without-secrets', ''.padEnd(3, 'x')],
    ['tailscale_hostname', 'a\nb'], ['tailscale_hostname', 'ü'], ['tailscale_tags', 'tag:a\u001b[0m'], ['systems', 'x;y'],
  ]) {
    assert.throws(() => read({ [name]: value }), (error) => error.message.includes(`input ${name} `) && !/[\n\u001b]/.test(error.message), `${name}=${value}`);
  }
});

test('no value is taken for a flag', () => {
  for (const word of words({ tailscale_hostname: '--help', builders: '--x', role: 'coordinator', systems: '--y' }).slice(1)) {
    assert.match(word, /^(-v|--[a-z-]+=.*)$/s);
  }
});

test('names are labels of at most 63 bytes that tell run, attempt, job and index', () => {
  const env = { GITHUB_RUN_ID: '12345678901', GITHUB_RUN_ATTEMPT: '3', GITHUB_JOB: 'Build_the (whole) "thing" `now`' };
  const name = (given) => hostnameOf(read(given), env);
  assert.equal(name({ index: '2' }), 'nix-builder-12345678901-3-build-the-whole-thing-now-2');
  assert.match(name({ role: 'coordinator' }), /^nix-coordinator-12345678901-3-build-the-whole-thing-now-[0-9a-f]{6}$/);
  assert.equal(runOf(read({}), env), '12345678901-3');
  env.GITHUB_JOB = 'x'.repeat(100);
  for (const index of ['', '0', '99']) assert.match(name({ index }), /^nix-builder-12345678901-3-x+-[0-9a-f]+$/);
  for (const index of ['', '0', '99']) assert.ok(name({ index }).length <= 63);
  assert.equal(name({ tailscale_hostname: 'as-given.1' }), 'as-given.1');
});
