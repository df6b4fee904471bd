#!/usr/bin/env node
'use strict';
// Plays nixtail for the launcher's tests; NIX_PLAY says which part, NIX_PLAY_RECORD where to write down what it was given.

const fs = require('node:fs');
const path = require('node:path');

const [verb, ...words] = process.argv.slice(2);
const given = (flag) => words.find((word) => word.startsWith(`--${flag}=`))?.slice(flag.length + 3);
const socket = given('socket');
const play = process.env.NIX_PLAY ?? '';
const record = (more) => fs.appendFileSync(process.env.NIX_PLAY_RECORD, `${JSON.stringify({ verb, words, ...more })}\n`);
const HOSTILE = 'evil\n::error::x **b** [l](http://x) <img> ::add-mask::y';

function leave(code) {
  fs.rmSync(socket, { force: true });
  process.exit(code);
}

switch (verb) {
  case 'builder':
  case 'coordinator': {
    record({ stdin: fs.readFileSync(0, 'utf8'), env: process.env, config: given('extra-nix-config') && fs.readFileSync(given('extra-nix-config').slice(5), 'utf8') });
    fs.writeFileSync(socket, '');
    if (play === 'refused') {
      console.error('nixtail: the key is refused: "no ::error::such key"\n  make another one');
      leave(77);
    }
    if (play === 'missing') {
      console.error('nixtail: 0 of 2 ready');
      leave(75);
    }
    for (const signal of ['SIGINT', 'SIGTERM']) {
      process.on(signal, () => {
        record({ signal });
        console.error(`nixtail: the builder ends: it got ${signal}`);
        setTimeout(() => leave(0), 200);
      });
    }
    const run = `${socket}.run`;
    fs.mkdirSync(run);
    fs.writeFileSync(path.join(run, 'env'), `export NIX_CONFIG="\${NIX_CONFIG:+$NIX_CONFIG\n}"'builders = @m'\nexport NIXTAIL_SOCKET='${socket}'\n`);
    if (play !== 'slow') console.log('ready evil.tail.devnet 100.64.0.1');
    console.error(`::error::from a build\nnixtail: a peer is called ${HOSTILE}`);
    if (play === 'unclaimed') setTimeout(() => { console.error('nixtail: the builder ends: no coordinator claimed it'); leave(0); }, 300);
    else if (play === 'killed') setTimeout(() => process.kill(process.pid, 'SIGKILL'), 300);
    else setInterval(() => { if (!fs.existsSync(socket)) process.exit(0); }, 50);
    break;
  }
  case 'status':
    console.log(JSON.stringify({
      self: { dns_name: HOSTILE, addresses: ['100.64.0.1', 'fd7a::1'] },
      builders: [{ name: HOSTILE, ready: true, system: 'x86_64-linux' }, { name: 'late', ready: false }, { name: 'b2', ready: true, system: 'aarch64-linux' }],
    }));
    break;
  default:
    record({ env: process.env });
    if (verb === 'down') {
      if (play === 'stuck') { console.error('nixtail: it does not answer'); process.exit(69); }
      fs.mkdirSync(path.join(path.dirname(socket), 'summary'), { recursive: true });
      fs.writeFileSync(path.join(path.dirname(socket), 'summary', 'summary.md'), '# what came of it\n');
      fs.rmSync(socket, { force: true });
    }
}
