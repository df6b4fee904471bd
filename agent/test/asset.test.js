'use strict';
const assert = require('node:assert/strict');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { createHash } = require('node:crypto');
const { test } = require('node:test');
const { assetFor, urlsOf } = require('../asset');
const { findBinary } = require('../binary');
const { folderOf, keptCommands, serve } = require('./fixture');

const PROGRAM = '#!/bin/sh\necho hello\n';
const NAME = assetFor(everywhere('0'.repeat(64))).name;

function everywhere(sha256) {
  const targets = ['x86_64-unknown-linux-musl', 'aarch64-unknown-linux-musl', 'x86_64-apple-darwin', 'aarch64-apple-darwin'];
  return { tag: 'binaries-v1.2.3', assets: Object.fromEntries(targets.map((target) => [`nixtail-${target}`, sha256])) };
}
const right = () => everywhere(createHash('sha256').update(PROGRAM).digest('hex'));
const env = (server) => ({ GITHUB_SERVER_URL: server, GITHUB_ACTION_REPOSITORY: 'owner/nixtail' });
const find = (server, folder, table, github = server) =>
  findBinary({ sourceBinary: '' }, folder, { env: env(server), table, github, commands: keptCommands(), pause: 1 });

test('an asset with the right checksum is there to be started', async (t) => {
  const asked = [];
  const server = await serve(t, (request, answer) => {
    asked.push(request.url);
    if (request.url.startsWith('/owner')) answer.writeHead(302, { location: '/elsewhere' }).end();
    else answer.end(PROGRAM);
  });
  const folder = folderOf(t);
  const file = await find(server, folder, right());
  assert.equal(file, path.join(folder, 'nixtail'));
  assert.equal(fs.readFileSync(file, 'utf8'), PROGRAM);
  assert.equal(fs.statSync(file).mode & 0o777, 0o755);
  assert.deepEqual(asked, [`/owner/nixtail/releases/download/binaries-v1.2.3/${NAME}`, '/elsewhere']);
});

test('a wrong checksum starts nothing and leaves nothing', async (t) => {
  const server = await serve(t, (_, answer) => answer.end(`${PROGRAM} `));
  const folder = folderOf(t);
  await assert.rejects(find(server, folder, right()), (error) => error.title === 'nixtail: wrong checksum' && error.exitCode === 77 && /not started/.test(error.next));
  assert.deepEqual(fs.readdirSync(folder), []);
});

test('a missing asset is told at once, and nothing is built in its place', async (t) => {
  let asked = 0;
  const server = await serve(t, (_, answer) => { asked += 1; answer.writeHead(404).end('not here'); });
  await assert.rejects(find(server, folderOf(t), right()), (error) => error.title === 'nixtail: missing asset' && error.message.includes('404'));
  assert.equal(asked, 1);
});

test('what a server of one\'s own doesn\'t have comes from GitHub', async (t) => {
  const own = await serve(t, (_, answer) => answer.writeHead(404).end());
  const github = await serve(t, (_, answer) => answer.end(PROGRAM));
  assert.ok(fs.existsSync(await find(own, folderOf(t), right(), github)));
  const empty = await serve(t, (_, answer) => answer.writeHead(404).end());
  await assert.rejects(find(own, folderOf(t), right(), empty), (error) => error.title === 'nixtail: missing asset');
});

test('a server that stumbles is asked again, one that lies there is given up', async (t) => {
  let asked = 0;
  const server = await serve(t, (_, answer) => { asked += 1; if (asked < 3) answer.writeHead(503).end(); else answer.end(PROGRAM); });
  assert.ok(fs.existsSync(await find(server, folderOf(t), right())));
  const cut = await serve(t, (_, answer) => { answer.writeHead(200, { 'content-length': 1000 }); answer.write('x'); answer.destroy(); });
  await assert.rejects(find(cut, folderOf(t), right()), (error) => error.exitCode === 69);
});

test('without a network the message says so, and what to do', async (t) => {
  const closed = net.createServer();
  await new Promise((resolve) => closed.listen(0, '127.0.0.1', resolve));
  const { port } = closed.address();
  await new Promise((resolve) => closed.close(resolve));
  await assert.rejects(find(`http://127.0.0.1:${port}`, folderOf(t), right()),
    (error) => /ECONNREFUSED/.test(error.message) && /source-binary/.test(error.next) && error.exitCode === 69);
});

test('a table that holds no checksum is no reason to start something', () => {
  assert.throws(() => assetFor(everywhere('abc')), /broken/);
  assert.throws(() => assetFor({ ...right(), tag: '../../x' }), /broken/);
  assert.equal(assetFor({ tag: '', assets: {} }), null);
  assert.equal(assetFor(right(), 'win32', 'x64'), null);
  assert.equal(assetFor(right(), 'linux', 's390x'), null);
  assert.deepEqual(urlsOf({ tag: 't', name: 'n' }, { GITHUB_REPOSITORY: 'o/r' }), ['https://github.com/o/r/releases/download/t/n']);
  const own = { GITHUB_REPOSITORY: 'o/r', GITHUB_SERVER_URL: 'https://git.example' };
  assert.deepEqual(urlsOf({ tag: 't', name: 'n' }, own).map((url) => new URL(url).host), ['git.example', 'github.com']);
});

test('the committed table is whole', () => {
  const table = JSON.parse(fs.readFileSync(path.join(__dirname, '../checksums.json'), 'utf8'));
  assert.equal(table.schema, 1);
  for (const sha256 of Object.values(table.assets)) assert.match(sha256, /^[0-9a-f]{64}$/);
});

test('a binary that is named is taken as it is, or the reason is told', async (t) => {
  const folder = folderOf(t);
  fs.writeFileSync(path.join(folder, 'mine'), PROGRAM, { mode: 0o755 });
  const found = await findBinary({ sourceBinary: 'mine' }, folder, { env: { GITHUB_WORKSPACE: folder } });
  assert.equal(fs.realpathSync(found), fs.realpathSync(path.join(folder, 'mine')));
  await assert.rejects(findBinary({ sourceBinary: 'other' }, folder, { env: { GITHUB_WORKSPACE: folder } }), /other can't be started/);
  await assert.rejects(findBinary({ sourceBinary: '.' }, folder, { env: { GITHUB_WORKSPACE: folder } }), /it is no file/);
});

/** A folder for PATH with a cargo that is this script. */
function cargo(t, script) {
  const bin = folderOf(t);
  fs.writeFileSync(path.join(bin, 'cargo'), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return bin;
}

const build = (folder, bin, commands) =>
  findBinary({ sourceBinary: '' }, folder, { table: { tag: '', assets: {} }, env: { PATH: `${bin}:/usr/bin:/bin`, GITHUB_TOKEN: 'secret' }, commands });

test('without an asset it is built from this very source, and that is told', async (t) => {
  const root = folderOf(t);
  const folder = path.join(root, 'bin');
  fs.mkdirSync(folder);
  const commands = keptCommands();
  const bin = cargo(t, 'echo "$@ in $PWD"; env; for last; do :; done; mkdir -p "$last/release"; echo "#!/bin/sh" >"$last/release/nixtail"; chmod 755 "$last/release/nixtail"');
  const found = await build(folder, bin, commands);
  assert.ok(fs.statSync(found).mode & 0o111);
  const said = commands.lines.join('\n');
  assert.match(said, /::notice title=nixtail%3A built from source::/);
  assert.match(said, new RegExp(`build --release --locked .* in ${path.resolve(__dirname, '../..')}`));
  assert.ok(!said.includes('secret'), 'cargo sees nothing of the job');
});

test('a build that fails, or no cargo, is told with what to do', async (t) => {
  const failed = cargo(t, 'echo "::error::of a crate"; exit 101');
  const commands = keptCommands();
  await assert.rejects(build(folderOf(t), failed, commands), (error) => /exit code 101/.test(error.message) && /source-binary/.test(error.next));
  assert.ok(!commands.lines.includes('::error::of a crate'));
  await assert.rejects(findBinary({ sourceBinary: '' }, folderOf(t), { table: { tag: '', assets: {} }, env: { PATH: '/nowhere' }, commands }), /it is not installed/);
});
