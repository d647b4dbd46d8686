// What every act of the demo uses: a folder, a device mapper, and words on the terminal.
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DeviceMapper } from '../api/device-mapper.ts';
import { type NbdService, serveNbd } from '../nbd/serve.ts';

/** Bytes in a sector, and the sectors of each image that the demo makes: 4 MiB. */
export const SECTOR_SIZE = 512;
export const IMAGE_SECTOR_COUNT = 8192;

/** Makes the images, plays the acts, cleans up. */
export class Stage {
  readonly dm: DeviceMapper = new DeviceMapper();
  readonly folder: string;
  #service: NbdService | null = null;

  constructor(folder: string) {
    this.folder = folder;
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { mode: 0o700 });
  }

  /** An image of {@link IMAGE_SECTOR_COUNT} sectors, each of which says which image it is of and which sector it is. */
  makeImage(name: string): string {
    const path = join(this.folder, name);
    const bytes = Buffer.alloc(IMAGE_SECTOR_COUNT * SECTOR_SIZE);
    for (let sector = 0; sector < IMAGE_SECTOR_COUNT; sector++) bytes.write(label(name, sector), sector * SECTOR_SIZE);
    writeFileSync(path, bytes);
    return path;
  }

  /** Serves every device that exists by now, on one socket. */
  async serve(): Promise<NbdService> {
    await this.#service?.close();
    this.#service = await serveNbd(this.dm, { listen: `unix:${join(this.folder, 'nbd.sock')}` });
    return this.#service;
  }

  async close(): Promise<void> {
    await this.#service?.close();
    await this.dm.close();
  }
}

/** What sector `sector` of image `name` begins with. */
export function label(name: string, sector: number): string {
  return `${name} sector ${sector} `;
}

/** The words a sector begins with. */
export function readLabel(bytes: Uint8Array): string {
  const text = Buffer.from(bytes).toString('latin1');
  return text.slice(0, text.indexOf('\0'));
}

export function say(text: string): void {
  process.stdout.write(`  ${text}\n`);
}

export function title(text: string): void {
  process.stdout.write(`\n${text}\n`);
}

/** The one command with which a person does what the act did. */
export function byHand(command: string): void {
  process.stdout.write(`  by hand: ${command}\n`);
}

/** Says what was found, or ends the demo with a failure. */
export function check(holds: boolean, text: string): void {
  if (!holds) throw new Error(`not true: ${text}`);
  say(`ok: ${text}`);
}
