'use strict';
// The folder of one step: socket, log, the files that Nix reads. Nobody else may look into it.

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

/** A Unix socket's path has 104 bytes on macOS, 108 on Linux; the longest name that we need beside it is some 20. */
const MAX_PATH = 79;
/** What Nix and ssh read without quotes (`src/direct/lane.rs`). */
const PLAIN = /^[A-Za-z0-9/._-]+$/;

class Folder {
  constructor(root) {
    this.root = root;
    this.socket = path.join(root, 'sock');
    this.log = path.join(root, 'log');
    this.ready = path.join(root, 'ready');
    this.bin = path.join(root, 'bin');
    this.summary = path.join(root, 'summary');
    this.nixConfig = path.join(root, 'nix.conf');
    // Where `nixtail coordinator` puts what Nix and ssh read.
    this.run = `${this.socket}.run`;
  }

  /** Makes one below the runner's own temporary folder, or below the system's where that can't hold a socket. */
  static make(env = process.env) {
    const places = [env.RUNNER_TEMP, os.tmpdir()].filter((place) => place && path.isAbsolute(place));
    const fits = (place) => Buffer.byteLength(place) <= MAX_PATH - 'nixtail-XXXXXX/'.length && PLAIN.test(place);
    const place = places.find(fits) ?? '/tmp';
    // mkdtemp makes it 0700.
    const folder = new Folder(fs.mkdtempSync(path.join(place, 'nixtail-')));
    fs.mkdirSync(folder.bin);
    return folder;
  }

  remove() {
    fs.rmSync(this.root, { recursive: true, force: true });
  }
}

module.exports = { Folder };
