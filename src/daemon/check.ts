// What arrives on the control socket is what it says it is, before anything is done with it.
import type { RequestName } from './control.ts';
import { ProtocolError } from './protocol.ts';

type Kind = 'text' | 'number' | 'number or null' | 'flag' | 'device' | 'table' | 'table kind';
type Shape = Readonly<Record<string, Kind | `${Kind}?`>>;

const DEVICE: Shape = { device: 'device' };

/** The arguments of each request. */
const SHAPES: Readonly<Record<RequestName, Shape>> = {
  daemon: {},
  targets: {},
  list: {},
  info: { ...DEVICE, inactive: 'flag?' },
  create: { name: 'text', uuid: 'text?', major: 'number?', minor: 'number?' },
  load: { ...DEVICE, table: 'table', readOnly: 'flag?', folder: 'text?', host: 'flag?' },
  clear: DEVICE,
  suspend: { ...DEVICE, noflush: 'flag?' },
  resume: { ...DEVICE, noflush: 'flag?' },
  remove: { ...DEVICE, deferred: 'flag?' },
  removeAll: { deferred: 'flag?' },
  rename: { name: 'text', newName: 'text' },
  setUuid: { name: 'text', uuid: 'text' },
  table: { ...DEVICE, type: 'table kind', inactive: 'flag?' },
  deps: { ...DEVICE, inactive: 'flag?' },
  wait: { ...DEVICE, eventNumber: 'number' },
  message: { ...DEVICE, sector: 'number', text: 'text' },
  setReadAhead: { ...DEVICE, sectorCount: 'number or null', atLeast: 'flag?' },
  snapshots: { device: 'device?' },
  snapshotChanges: { ...DEVICE, sector: 'number' },
  snapshotUsers: { origin: 'text?', cow: 'text?' },
  restore: {},
  shutdown: { force: 'flag?' },
};

type Fields = Readonly<Record<string, unknown>>;

function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isNumber(value: unknown): value is number {
  return typeof value === 'number' && value >= 0;
}

function isDevice(value: unknown): boolean {
  if (!isFields(value)) return false;
  if (typeof value.name === 'string') return true;
  if (typeof value.uuid === 'string') return true;
  return isNumber(value.major) && isNumber(value.minor);
}

function isEntry(value: unknown): boolean {
  return (
    isFields(value) &&
    isNumber(value.sector) &&
    isNumber(value.sectorCount) &&
    typeof value.type === 'string' &&
    typeof value.params === 'string'
  );
}

const CHECKS: Readonly<Record<Kind, (value: unknown) => boolean>> = {
  text: (value) => typeof value === 'string',
  number: isNumber,
  'number or null': (value) => value === null || isNumber(value),
  flag: (value) => typeof value === 'boolean',
  device: isDevice,
  table: (value) => Array.isArray(value) && value.every(isEntry),
  'table kind': (value) => value === 'table' || value === 'info',
};

/** What a client may send. */
export type ClientMessage = { id: number; name: RequestName; args: Fields } | { cancel: number };

/** @throws ProtocolError for anything else */
export function checkMessage(message: unknown): ClientMessage {
  if (!isFields(message)) throw new ProtocolError('a message that is no object');
  if (isNumber(message.cancel)) return { cancel: message.cancel };
  const { id, name, args } = message;
  if (!isNumber(id) || typeof name !== 'string' || !isFields(args))
    throw new ProtocolError('a request without its parts');
  const shape = Object.hasOwn(SHAPES, name) ? SHAPES[name as RequestName] : undefined;
  if (shape === undefined) throw new ProtocolError(`no request is called ${JSON.stringify(name.slice(0, 64))}`);
  for (const [field, kind] of Object.entries(shape)) {
    const value = args[field];
    const isOptional = kind.endsWith('?');
    if (isOptional && value === undefined) continue;
    if (!CHECKS[(isOptional ? kind.slice(0, -1) : kind) as Kind](value)) {
      throw new ProtocolError(`${name}: ${field} is no ${kind.replace('?', '')}`);
    }
  }
  return { id, name: name as RequestName, args };
}
