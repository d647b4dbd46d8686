// Where a daemon lives: one folder that nobody else can enter, with its sockets, journal and log.
import { lstatSync, mkdirSync, type Stats } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

/** Bytes that fit into a Unix socket's address, without the NUL. */
const MAX_SOCKET_PATH_BYTE_LENGTH = process.platform === 'linux' ? 107 : 103;
/** A socket is made in a folder beside its place first: `/.d-XXXXXX/s`. */
const BINDING_BYTE_LENGTH = 12;

/** The files of a daemon. */
export class DaemonFolder {
  /** Absolute. */
  readonly path: string;

  constructor(path: string) {
    this.path = resolve(path);
  }

  get controlSocket(): string {
    return join(this.path, 'control.sock');
  }

  get nbdSocket(): string {
    return join(this.path, 'nbd.sock');
  }

  /** Held by the daemon as long as it lives. */
  get lockFile(): string {
    return join(this.path, 'daemon.lock');
  }

  /** The devices as they are now. */
  get journal(): string {
    return join(this.path, 'journal.json');
  }

  /** The devices of a daemon that ended without taking them down, until they are restored or forgotten. */
  get lostJournal(): string {
    return join(this.path, 'journal.lost.json');
  }

  get logFile(): string {
    return join(this.path, 'daemon.log');
  }

  /** @throws DmError ENAMETOOLONG where the paths of the sockets would be cut */
  checkSocketPaths(): void {
    const longest = Math.max(Buffer.byteLength(this.controlSocket), Buffer.byteLength(this.path) + BINDING_BYTE_LENGTH);
    if (longest <= MAX_SOCKET_PATH_BYTE_LENGTH) return;
    throw new DmError(
      Errno.ENAMETOOLONG,
      `${this.controlSocket} is ${longest} bytes long, and a Unix socket's path has at most ${MAX_SOCKET_PATH_BYTE_LENGTH}: set DMKIT_DIR to a shorter folder`,
    );
  }

  /** Makes the folder where it is missing. @throws DmError where that fails, or somebody else could enter it */
  make(): void {
    this.checkSocketPaths();
    try {
      mkdirSync(this.path, { recursive: true, mode: 0o700 });
    } catch (error) {
      const errno = errnoFromException(error);
      throw new DmError(errno, `cannot make the folder ${this.path}: ${errnoMessage(errno)}; DMKIT_DIR names another`);
    }
    this.check();
  }

  /** @throws DmError EACCES where the folder is another user's or open to others; a missing one is fine */
  check(): void {
    let stat: Stats;
    try {
      stat = lstatSync(this.path);
    } catch {
      return;
    }
    if (!stat.isDirectory()) throw new DmError(Errno.ENOTDIR, `${this.path} is no folder; DMKIT_DIR names another`);
    const uid = process.getuid?.() ?? stat.uid;
    if (stat.uid !== uid || (stat.mode & 0o077) !== 0) {
      throw new DmError(
        Errno.EACCES,
        `${this.path} must be yours alone (mode 0700), because whoever enters it commands your devices`,
      );
    }
  }
}

/** DMKIT_DIR, else $XDG_RUNTIME_DIR/dmkit, else a folder of this user's among the temporary ones. */
export function daemonFolder(env: NodeJS.ProcessEnv = process.env): DaemonFolder {
  if (env.DMKIT_DIR) return new DaemonFolder(env.DMKIT_DIR);
  if (env.XDG_RUNTIME_DIR) return new DaemonFolder(join(env.XDG_RUNTIME_DIR, 'dmkit'));
  return new DaemonFolder(join(tmpdir(), `dmkit-${process.getuid?.() ?? 'user'}`));
}
