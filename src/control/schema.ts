// The shapes of requests' arguments: declared once, they give the TypeScript type, the check of what arrives on a socket,
// and the words of the protocol's page. (A validation library costs more at a command's start than all of dmkit.)
import { isSector } from '../block/sector.ts';
import { LongText } from '../table/long-text.ts';
import type { TableInput } from '../table/text.ts';

/** Which device: one of the three. */
export type DeviceAddress = { name: string } | { uuid: string } | { major: number; minor: number };

/** One argument: `describe` for people, `check` for what arrives. */
export interface Shape<Value> {
  readonly describe: string;
  readonly isOptional: boolean;
  /** True where the value may be long, and travels behind the message. */
  readonly isText: boolean;
  check(value: unknown): boolean;
  /** Never set: it carries the type. */
  readonly value?: Value;
}

export type Shapes = Readonly<Record<string, Shape<unknown>>>;

type ValueOf<S> = S extends Shape<infer Value> ? Value : never;
type OptionalKeys<S extends Shapes> = { [K in keyof S]: undefined extends ValueOf<S[K]> ? K : never }[keyof S];

/** The arguments of a request. */
export type ArgsOf<S extends Shapes> = { [K in Exclude<keyof S, OptionalKeys<S>>]: ValueOf<S[K]> } & {
  [K in OptionalKeys<S>]?: Exclude<ValueOf<S[K]>, undefined>;
};

function shape<Value>(describe: string, check: (value: unknown) => boolean, isText = false): Shape<Value> {
  return { describe, check, isOptional: false, isText };
}

export const text = (): Shape<string> => shape('text', (value) => typeof value === 'string');

export const flag = (): Shape<boolean> => shape('true or false', (value) => typeof value === 'boolean');

/** A whole number from 0 to 2^53 - 1. */
export const count = (): Shape<number> => shape('a whole number', isCount);

export const countOrNull = (): Shape<number | null> =>
  shape('a whole number or null', (value) => value === null || isCount(value));

export function oneOf<const Word extends string>(...words: readonly Word[]): Shape<Word> {
  return shape(words.join(' or '), (value) => words.includes(value as Word));
}

export const texts = (): Shape<string[]> =>
  shape('a list of texts', (value) => Array.isArray(value) && value.every((one) => typeof one === 'string'));

export const device = (): Shape<DeviceAddress> => shape('{name} or {uuid} or {major, minor}', isAddress);

/** Table text, or its lines. */
export const table = (): Shape<TableInput> =>
  shape('table text, or a list of {sector, sectorCount, type, params}', isTable, true);

export function fields<S extends Shapes>(shapes: S): Shape<ArgsOf<S>> {
  const words = Object.entries(shapes).map(([name, one]) => `${name}${one.isOptional ? '?' : ''}`);
  return shape(`{${words.join(', ')}}`, (value) => isFields(value) && objection(shapes, value) === null);
}

export function listOf<Value>(one: Shape<Value>): Shape<Value[]> {
  return shape(`a list of ${one.describe}`, (value) => Array.isArray(value) && value.every((item) => one.check(item)));
}

export function optional<Value>(one: Shape<Value>): Shape<Value | undefined> {
  return { ...one, isOptional: true, check: (value) => value === undefined || one.check(value) };
}

export type Fields = Readonly<Record<string, unknown>>;

export function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

function isAddress(value: unknown): boolean {
  if (!isFields(value)) return false;
  if (typeof value.name === 'string') return true;
  if (typeof value.uuid === 'string') return true;
  return isCount(value.major) && isCount(value.minor);
}

function isTable(value: unknown): boolean {
  return typeof value === 'string' || value instanceof LongText || (Array.isArray(value) && value.every(isEntry));
}

/** Past 2^53 a number is rounded, and the table refuses it; a fraction is none that a table can have. */
function isEntry(value: unknown): boolean {
  return (
    isFields(value) &&
    isWhole(value.sector) &&
    isWhole(value.sectorCount) &&
    typeof value.type === 'string' &&
    typeof value.params === 'string'
  );
}

function isWhole(value: unknown): boolean {
  return isSector(value as number) || (typeof value === 'number' && value > 0 && Number.isInteger(value));
}

/** Why `args` can't be taken, in a sentence; null where they can. */
export function objection(shapes: Shapes, args: Fields): string | null {
  for (const [name, one] of Object.entries(shapes)) {
    if (one.check(args[name])) continue;
    return args[name] === undefined ? `${name} is missing: ${one.describe}` : `${name} must be ${one.describe}`;
  }
  for (const name of Object.keys(args)) if (!Object.hasOwn(shapes, name)) return `no argument is called ${name}`;
  return null;
}
