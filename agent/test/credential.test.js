'use strict';
const assert = require('node:assert/strict');
const { test } = require('node:test');
const { findCredential, maskInputs, preauthorized } = require('../credential');
const { agentEnvironment } = require('../environment');
const { keptCommands, serve } = require('./fixture');

const JWT = 'aGVhZA.Ym9keQ.c2ln';
const find = (inputs, env = {}, commands = keptCommands()) => findCredential({ authKey: '', clientId: '', audience: '', ...inputs }, { env, commands });

test('a key goes to stdin and nowhere else', async () => {
  const found = await find({ authKey: 'tskey-auth-x' });
  assert.deepEqual(found, { args: ['--auth-key=file:-'], env: {}, stdin: 'tskey-auth-x' });
  assert.equal(await find({}), null);
});

test('nodes of a client\'s secret need no approval, unless it says otherwise', () => {
  assert.equal(preauthorized('tskey-auth-x'), 'tskey-auth-x');
  assert.equal(preauthorized('tskey-client-x'), 'tskey-client-x?ephemeral=true&preauthorized=true');
  assert.equal(preauthorized('tskey-client-x?preauthorized=false&baseURL=http://a'), 'tskey-client-x?preauthorized=false&baseURL=http://a&ephemeral=true');
  assert.equal(preauthorized('T1/k1', true), 'T1/k1?ephemeral=true&preauthorized=true');
});

test('secrets are masked whole and in parts', () => {
  const commands = keptCommands();
  maskInputs({ authKey: 'tskey-client-x?baseURL=y\nsecond' }, commands);
  assert.deepEqual(commands.lines, ['::add-mask::tskey-client-x?baseURL=y', '::add-mask::second', '::add-mask::tskey-client-x', '::add-mask::second']);
});

test('a workload identity\'s token is asked for, masked and handed over', async (t) => {
  const asked = [];
  const url = await serve(t, (request, answer) => {
    asked.push([request.url, request.headers.authorization]);
    if (asked.length === 1) answer.writeHead(500).end();
    else answer.end(JSON.stringify({ value: JWT }));
  });
  const commands = keptCommands();
  const env = { ACTIONS_ID_TOKEN_REQUEST_URL: `${url}/t?api-version=2.0`, ACTIONS_ID_TOKEN_REQUEST_TOKEN: 'bearer' };
  const found = await find({ clientId: 'T1/k1', audience: 'api/k1' }, env, commands);
  assert.deepEqual(found, { args: [], env: { TS_CLIENT_ID: 'T1/k1?ephemeral=true&preauthorized=true', TS_ID_TOKEN: 'file:-' }, stdin: JWT });
  assert.deepEqual(asked[1], ['/t?api-version=2.0&audience=api%2Fk1', 'Bearer bearer']);
  assert.deepEqual(commands.lines, ['::add-mask::bearer', `::add-mask::${JWT}`]);
});

test('what is half, twice or not allowed is told', async (t) => {
  await assert.rejects(find({ authKey: 'a', clientId: 'b' }), /both/);
  await assert.rejects(find({ clientId: 'b' }), /without audience/);
  await assert.rejects(find({ audience: 'b' }), /without oauth-client-id/);
  await assert.rejects(find({ clientId: 'a', audience: 'b' }), (error) => /id-token: write/.test(error.next) && error.exitCode === 77);
  const url = await serve(t, (request, answer) => { if (request.url.includes('refused')) answer.writeHead(403).end(); else answer.end('<html>secret</html>'); });
  const env = (path) => ({ ACTIONS_ID_TOKEN_REQUEST_URL: `${url}/${path}`, ACTIONS_ID_TOKEN_REQUEST_TOKEN: 'bearer' });
  await assert.rejects(find({ clientId: 'a', audience: 'b' }, env('refused')), /GitHub answered 403/);
  await assert.rejects(find({ clientId: 'a', audience: 'b' }, env('html')), (error) => /no JSON/.test(error.message) && !error.message.includes('secret'));
});

test('the agent sees nothing of the job\'s secrets', () => {
  const env = {
    PATH: '/bin', HOME: '/h', NIX_PATH: 'x', HTTPS_PROXY: 'http://p', RUNNER_TRACKING_ID: 'id', GITHUB_TOKEN: 's', GH_TOKEN: 's', ACTIONS_RUNTIME_TOKEN: 's',
    ACTIONS_ID_TOKEN_REQUEST_TOKEN: 's', INPUT_TAILSCALE_AUTHKEY: 's', TS_AUTHKEY: 's', CACHIX_AUTH_TOKEN: 's', GITHUB_OUTPUT: 's', 'INPUT_OAUTH-CLIENT-ID': 's', NODE_OPTIONS: 's',
  };
  assert.deepEqual(agentEnvironment(env), { PATH: '/bin', HOME: '/h', NIX_PATH: 'x', HTTPS_PROXY: 'http://p', RUNNER_TRACKING_ID: 'id', NO_COLOR: '1' });
});
