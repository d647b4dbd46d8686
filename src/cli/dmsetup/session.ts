// One command on its way: what was asked, whom to ask, and how failures read.
import { errnoMessage } from '../../block/errno.ts';
import { DmError, TableError } from '../../block/errors.ts';
import type { Control, Reply, RequestArgs, RequestName } from '../../control/requests.ts';
import type { DeviceAddress, DeviceStatus } from '../../control/types.ts';
import { CommandFailed, type DmsetupIo, reasonsOf } from './io.ts';
import { type ManglingMode, Names } from './names.ts';
import { integerOf, type ParsedLine } from './options.ts';

/** A device as the command line names it. */
export interface DeviceRef {
  address: DeviceAddress;
  /** For messages: dmsetup repeats what it was given. */
  name: string;
  uuid: string;
  number: string;
}

/** dmsetup's word for a request of ours, in its messages. */
const IOCTL_WORDS: Partial<Record<RequestName, string>> = {
  load: 'reload',
  removeAll: 'remove_all',
  setUuid: 'rename',
  wait: 'waitevent',
};

/** What the kernel logs of these goes under its ioctl code's name. */
const LOGGED_AS_IOCTL: readonly RequestName[] = ['rename', 'setUuid', 'message'];

const ENXIO = 6;

/** The path of a mapped device's node. */
export const MAPPER_FOLDER = '/dev/mapper/';

export class Session {
  readonly line: ParsedLine;
  readonly io: DmsetupIo;
  readonly control: Control;
  readonly names: Names;
  readonly command: string;
  /** What stands behind the command. */
  readonly args: readonly string[];
  /** Done when the command has ended, whether it failed or not: reports are printed then. */
  readonly atEnd: (() => void)[] = [];

  /** Notices that were printed: a command that loads many tables says each once. */
  readonly #noted = new Set<string>();

  constructor(line: ParsedLine, io: DmsetupIo, control: Control) {
    this.line = line;
    this.io = io;
    this.control = control;
    this.names = new Names((line.options.get('manglename') ?? 'auto') as ManglingMode, io);
    this.command = line.words[0]!;
    this.args = line.words.slice(1);
  }

  has(option: string): boolean {
    return this.line.options.has(option);
  }

  option(name: string): string | undefined {
    return this.line.options.get(name);
  }

  print(text: string): void {
    this.io.stdout(text);
  }

  /** Says why, and fails. */
  fail(text: string): never {
    this.io.stderr(`${text}\n`);
    throw new CommandFailed();
  }

  /**
   * Asks; a refusal is told as dmsetup tells a failed ioctl.
   *
   * @throws CommandFailed
   */
  async ask<Name extends RequestName>(
    name: Name,
    ref: DeviceRef | null,
    args: RequestArgs<Name>,
  ): Promise<Reply<Name>> {
    try {
      const onNotice = (text: string): void => {
        if (!this.#noted.has(text)) this.io.note(`${text}\n`);
        this.#noted.add(text);
      };
      return await this.control.call(name, args, { signal: this.io.signal, onNotice });
    } catch (error) {
      if (!(error instanceof DmError) || error.errno === 0) throw error;
      await this.#tell(name, ref, error);
      throw new CommandFailed();
    }
  }

  async #tell(request: RequestName, ref: DeviceRef | null, error: DmError): Promise<void> {
    // Of an operation that takes several of the kernel's requests, the one that failed is named.
    const { step } = error;
    const failed = (step?.request ?? request) as RequestName;
    const word = IOCTL_WORDS[failed] ?? failed;
    const number = step === undefined ? (ref?.number ?? '') : `(${step.major}:${step.minor})`;
    const device = `${ref?.name ?? ''} ${step === undefined ? (ref?.uuid ?? '') : ''}${number}`;
    this.io.stderr(`device-mapper: ${word} ioctl on ${device} failed: ${errnoMessage(error.errno)}\n`);
    for (const reason of await this.#reasons(failed, ref, error)) this.io.note(`${reason}\n`);
  }

  async #reasons(request: RequestName, ref: DeviceRef | null, error: DmError): Promise<string[]> {
    if (error instanceof TableError) {
      const [, ...causes] = reasonsOf(error, '');
      const number = error.step === undefined ? await this.#numberOf(ref) : `${error.step.major}:${error.step.minor}`;
      return [`device-mapper: table: ${number}: ${error.reason}`, ...causes];
    }
    if (LOGGED_AS_IOCTL.includes(request) && error.errno !== ENXIO) return reasonsOf(error, 'device-mapper: ioctl: ');
    // That a device is not there needs no second sentence.
    return error.errno === ENXIO && request !== 'load' && request !== 'create' ? [] : reasonsOf(error, '');
  }

  /** As the kernel names a device in its log. */
  async #numberOf(ref: DeviceRef | null): Promise<string> {
    if (ref === null) return '';
    try {
      const { major, minor } = await this.control.call('info', { device: ref.address });
      return `${major}:${minor}`;
    } catch {
      return ref.name;
    }
  }

  // Devices

  /** The devices that the command line names, by name, path, uuid or number. @throws CommandFailed */
  async devices(words: readonly string[] = this.args): Promise<DeviceRef[]> {
    const uuid = this.option('uuid');
    if (uuid !== undefined) {
      const mangled = this.names.mangleUuid(uuid);
      return [{ address: { uuid: mangled }, name: '', uuid, number: '' }];
    }
    if (this.has('major')) {
      const major = integerOf(this.option('major') ?? '');
      const minor = integerOf(this.option('minor') ?? '');
      return [{ address: { major, minor }, name: '', uuid: '', number: `(${major}:${minor})` }];
    }
    const refs: DeviceRef[] = [];
    for (const word of words) refs.push(await this.device(word));
    return refs;
  }

  /** Addressed by -u or -j and -m: such a device is not among the words. */
  get isAddressedByOption(): boolean {
    return this.has('uuid') || this.has('major');
  }

  /** A device by name or path. @throws CommandFailed */
  async device(word: string): Promise<DeviceRef> {
    if (word.startsWith('dm:')) return this.byName(word.slice(3));
    const number = /^\/dev\/dm-(\d+)$/.exec(word);
    if (number !== null) return this.#byMinor(word, Number(number[1]));
    if (!word.startsWith('/')) return this.byName(word);
    if (!word.startsWith(MAPPER_FOLDER) || word.length === MAPPER_FOLDER.length) {
      return this.fail(`Device ${word} not found`);
    }
    const name = word.slice(MAPPER_FOLDER.length);
    if (this.io.isHostDevice(word) && (await this.#list()).some((status) => status.name === this.names.mangle(name))) {
      this.fail(`${word} is a device of this host, and dmkit has one of that name: say dm:${name} for dmkit's.`);
    }
    return this.byName(name);
  }

  byName(name: string): DeviceRef {
    return { address: { name: this.names.mangle(name) }, name, uuid: '', number: '' };
  }

  async #byMinor(word: string, minor: number): Promise<DeviceRef> {
    const found = (await this.#list()).find((status) => status.minor === minor);
    return found === undefined ? this.fail(`Device ${word} not found`) : this.byName(this.names.show(found.name));
  }

  #list(): Promise<DeviceStatus[]> {
    return this.control.call('list', {});
  }

  /** Every device, in the order of their names. */
  async all(): Promise<DeviceStatus[]> {
    return this.ask('list', null, {});
  }

  /** A device that a listing gave. */
  refOf(status: DeviceStatus): DeviceRef {
    return { address: { name: status.name }, name: this.names.show(status.name), uuid: '', number: '' };
  }

  /** Every name first, so that one that cannot be shown fails the command before anything is printed. */
  async allRefs(): Promise<DeviceRef[]> {
    return (await this.all()).map((status) => this.refOf(status));
  }

  noDevices(): void {
    this.print('No devices found\n');
  }

  /** The devices named, or the first word missing. @throws CommandFailed */
  async named(): Promise<DeviceRef[]> {
    const refs = await this.devices();
    if (refs.length === 0) this.fail('No device specified.');
    return refs;
  }

  json(value: unknown): void {
    this.print(`${JSON.stringify(value, null, 2)}\n`);
  }
}
