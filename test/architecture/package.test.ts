// What package.json promises and what is there must agree.
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { version } from '../../src/index.ts';

const root = new URL('../../', import.meta.url);
const manifest = JSON.parse(readFileSync(new URL('package.json', root), 'utf8'));

describe('package.json', () => {
  it('names the version that the library exports', () => {
    expect(version).toBe(manifest.version);
  });

  it('has a source for every entry', () => {
    const entries = [...Object.values(manifest.bin), ...Object.values(manifest.exports)] as (
      | string
      | { default: string }
    )[];
    for (const entry of entries) {
      const path = typeof entry === 'string' ? entry : entry.default;
      const source = path.replace(/^(\.\/)?dist\/(.*)\.js$/, 'src/$2.ts');
      expect(existsSync(new URL(source, root)), source).toBe(true);
    }
  });
});

describe('package-lock.json', () => {
  it('names no registry', () => {
    expect(readFileSync(new URL('package-lock.json', root), 'utf8')).not.toContain('"resolved"');
  });
});
