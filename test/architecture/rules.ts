// The rules of the house, as functions over files given as text: `dependencies.test.ts` gives them the real tree, and
// fixtures that break each rule.
import { posix } from 'node:path';
import { parseSource, type Source } from './source.ts';

/** The one order: a folder imports itself and what stands left of it. */
export const ORDER = [
  'block',
  'files',
  'nbd/protocol',
  'engine',
  'nbd/client',
  'devices',
  'dm-io',
  'kcopyd',
  'table',
  'targets',
  'mapper',
  'reactor',
  'control/core',
  'overlays',
  'control',
  'api',
  'nbd/server',
  'nbd',
  'copy',
  'testing',
  'daemon',
  'adapters',
  'client',
  'cli',
  'demo',
  'index',
];

/** Folders that may import less than what stands left of them. */
const ONLY: Record<string, string[]> = {
  files: ['block'],
  'nbd/protocol': ['block'],
  engine: ['block', 'files'],
  'nbd/client': ['block', 'nbd/protocol', 'engine'],
  'dm-io': ['block', 'engine'],
  kcopyd: ['block', 'engine', 'dm-io'],
  table: ['block'],
  targets: ['block', 'engine', 'dm-io', 'kcopyd'],
  'nbd/server': ['block', 'nbd/protocol', 'engine'],
  copy: ['block', 'files', 'engine', 'devices', 'dm-io', 'reactor', 'nbd'],
  testing: ['block', 'engine'],
};

const MAX_LINES = 700;

/** Path from the root of the repository, such as `src/block/bio.ts`, to text. */
export type Tree = Map<string, string>;

/** The layer of a path under src/: its folder in ORDER, or undefined where the folder is in no place. */
export function layerOf(path: string): string | undefined {
  const parts = path.split('/').slice(1);
  if (parts.length === 1) return 'index';
  const two = parts.slice(0, 2).join('/');
  if (parts.length > 2 && ORDER.includes(two)) return two;
  const first = parts[0] as string;
  // nbd/ itself holds only the entry that gathers its three parts.
  if (first === 'nbd' && parts.length > 2) return undefined;
  return ORDER.includes(first) ? first : undefined;
}

function mayImport(from: string, to: string): boolean {
  if (from === to) return true;
  const only = ONLY[from];
  return only === undefined ? ORDER.indexOf(to) < ORDER.indexOf(from) : only.includes(to);
}

const isBelowReactor = (layer: string) => ORDER.indexOf(layer) < ORDER.indexOf('reactor');

function resolveImport(path: string, specifier: string): string | undefined {
  return specifier.startsWith('.') ? posix.normalize(posix.join(posix.dirname(path), specifier)) : undefined;
}

function checkLayers(path: string, layer: string, source: Source): string[] {
  const problems: string[] = [];
  for (const { specifier, line } of source.imports) {
    const target = resolveImport(path, specifier);
    if (target === undefined) continue;
    if (!target.startsWith('src/')) {
      problems.push(`${path}:${line}: imports ${specifier}, which is outside src`);
      continue;
    }
    const to = layerOf(target);
    if (to === undefined || !mayImport(layer, to)) {
      problems.push(`${path}:${line}: ${layer} may not import ${to ?? target} (${specifier})`);
    }
  }
  return problems;
}

/** Why a module from outside may not be imported here, or undefined. */
function outsideObjection(layer: string, specifier: string, lazy: boolean, typeOnly: boolean): string | undefined {
  const name = specifier.replace(/^node:/, '');
  if (name === 'koffi') {
    if (layer !== 'engine') return 'koffi belongs to engine alone';
    return lazy || typeOnly ? undefined : 'koffi must be loaded lazily';
  }
  if (!isBelowReactor(layer)) return undefined;
  if (/^(net|tls|timers|timers\/promises)$/.test(name)) return 'sockets and timers come from the reactor';
  if (name === 'fs/promises') return 'promises are made at the edge';
  if (name === 'fs' && !['files', 'engine', 'devices'].includes(layer))
    return 'files are reached through these layers: files, engine, devices';
  return undefined;
}

const TIMER = /(?<![\w$.])(?:setTimeout|setInterval|setImmediate)\b/;
const PROMISE = /\bnew\s+Promise\b|(?<![\w$.'"])(?:async|await)\s(?!\s*[=:])/;

function checkOutside(path: string, layer: string, source: Source): string[] {
  const problems: string[] = [];
  for (const { specifier, line, lazy, typeOnly } of source.imports) {
    if (specifier.startsWith('.')) continue;
    const objection = outsideObjection(layer, specifier, lazy, typeOnly);
    if (objection !== undefined) problems.push(`${path}:${line}: ${layer} imports ${specifier}: ${objection}`);
  }
  if (!isBelowReactor(layer)) return problems;
  for (const [index, text] of source.code.split('\n').entries()) {
    const where = `${path}:${index + 1}: ${layer} is below the reactor:`;
    if (TIMER.test(text)) problems.push(`${where} a timer comes from the reactor`);
    if (layer !== 'nbd/client' && PROMISE.test(text)) problems.push(`${where} promises are made at the edge`);
  }
  return problems;
}

/** Imports between files that go round in a circle at run time. Types are erased and may refer to each other. */
export function findCycles(sources: Map<string, Source>): string[] {
  const state = new Map<string, 'open' | 'done'>();
  const problems: string[] = [];
  const visit = (path: string, trail: string[]): void => {
    if (state.get(path) === 'done') return;
    if (state.get(path) === 'open') {
      problems.push(`import cycle: ${[...trail.slice(trail.indexOf(path)), path].join(' -> ')}`);
      return;
    }
    state.set(path, 'open');
    for (const { specifier, typeOnly } of sources.get(path)?.imports ?? []) {
      const target = resolveImport(path, specifier);
      if (!typeOnly && target !== undefined && sources.has(target)) visit(target, [...trail, path]);
    }
    state.set(path, 'done');
  };
  for (const path of sources.keys()) visit(path, []);
  return problems;
}

// Written in pieces, so that this file doesn't break the rules that it states.
const MACHINE_PATH = new RegExp(`(?<![\\w.})\\]*-])/(?:${['work', 'tmp', 'root'].join('|')})(?=[/'"\`])`);
const LEFT_FOR_LATER = new RegExp(`\\b(?:${['TO', 'FIX'].map((word, i) => word + ['DO', 'ME'][i]).join('|')})\\b`);

function checkText(path: string, text: string): string[] {
  const problems: string[] = [];
  const lines = text.split('\n');
  for (const [index, line] of lines.entries()) {
    if (MACHINE_PATH.test(line)) problems.push(`${path}:${index + 1}: a path of one machine`);
    if (LEFT_FOR_LATER.test(line)) problems.push(`${path}:${index + 1}: a note of something left for later`);
  }
  const lineCount = text.endsWith('\n') ? lines.length - 1 : lines.length;
  if (path.startsWith('src/') && lineCount > MAX_LINES) problems.push(`${path}: ${lineCount} lines, over ${MAX_LINES}`);
  return problems;
}

/** Everything that is wrong with `tree`, one line each. */
export function findProblems(tree: Tree): string[] {
  const problems: string[] = [];
  const sources = new Map<string, Source>();
  for (const [path, text] of tree) {
    problems.push(...checkText(path, text));
    if (!path.startsWith('src/') || !path.endsWith('.ts')) continue;
    const source = parseSource(text);
    sources.set(path, source);
    const layer = layerOf(path);
    if (layer === undefined) problems.push(`${path}: its folder has no place in the order`);
    else problems.push(...checkLayers(path, layer, source), ...checkOutside(path, layer, source));
  }
  return [...problems, ...findCycles(sources)];
}
