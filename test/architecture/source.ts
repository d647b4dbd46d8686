// Reads the imports of a TypeScript source without a compiler: a scanner that knows comments, strings, templates and
// regular expressions, so that a word in a comment or a message is never taken for code.

export interface Import {
  specifier: string;
  line: number;
  /** Erased by the compiler: it binds no module at run time. */
  typeOnly: boolean;
  /** `import()` or `require()`: it happens when it is reached, not when the module is loaded. */
  lazy: boolean;
}

export interface Source {
  /** The text with comments, and the insides of strings and regular expressions, blanked; same length, same lines. */
  code: string;
  imports: Import[];
}

interface Scan {
  code: string[];
  /** Contents of string literals by the offset of their opening quote. */
  strings: Map<number, string>;
}

const BEFORE_REGEXP = /(?:^|[=([{,;:!&|?+\-*%~^<>]|\b(?:return|typeof|case|in|of|void|delete|throw|new|else|do))\s*$/;

function blank(out: string[], from: number, to: number): void {
  for (let i = from; i < to; i += 1) if (out[i] !== '\n') out[i] = ' ';
}

function endOfQuoted(text: string, start: number): number {
  const quote = text[start];
  let i = start + 1;
  while (i < text.length && text[i] !== quote && text[i] !== '\n') i += text[i] === '\\' ? 2 : 1;
  return i;
}

function endOfRegExp(text: string, start: number): number {
  let inClass = false;
  let i = start + 1;
  for (; i < text.length && text[i] !== '\n'; i += 1) {
    if (text[i] === '\\') i += 1;
    else if (text[i] === '[') inClass = true;
    else if (text[i] === ']') inClass = false;
    else if (text[i] === '/' && !inClass) break;
  }
  return i;
}

/** Scans code until `stop` closes it (the `}` of a template's hole) and returns the offset after that. */
function scanCode(text: string, from: number, scan: Scan, inHole: boolean): number {
  let depth = 0;
  let i = from;
  while (i < text.length) {
    const char = text[i];
    const next = text[i + 1];
    let end = i + 1;
    if (char === '/' && next === '/') {
      end = text.indexOf('\n', i);
      if (end === -1) end = text.length;
      blank(scan.code, i, end);
    } else if (char === '/' && next === '*') {
      end = text.indexOf('*/', i + 2);
      end = end === -1 ? text.length : end + 2;
      blank(scan.code, i, end);
    } else if (char === "'" || char === '"') {
      end = endOfQuoted(text, i);
      scan.strings.set(i, text.slice(i + 1, end));
      blank(scan.code, i + 1, end);
      end += 1;
    } else if (char === '`') {
      end = scanTemplate(text, i, scan);
    } else if (char === '/' && BEFORE_REGEXP.test(scan.code.slice(Math.max(0, i - 80), i).join(''))) {
      end = endOfRegExp(text, i);
      blank(scan.code, i + 1, end);
      end += 1;
    } else if (char === '{') {
      depth += 1;
    } else if (char === '}') {
      if (inHole && depth === 0) return i + 1;
      depth -= 1;
    }
    i = end;
  }
  return i;
}

function scanTemplate(text: string, start: number, scan: Scan): number {
  let i = start + 1;
  let literal = i;
  while (i < text.length && text[i] !== '`') {
    if (text[i] === '\\') {
      i += 2;
    } else if (text[i] === '$' && text[i + 1] === '{') {
      blank(scan.code, literal, i);
      i = scanCode(text, i + 2, scan, true);
      literal = i;
    } else {
      i += 1;
    }
  }
  blank(scan.code, literal, Math.min(i, text.length));
  return i + 1;
}

const STATIC = /\b(?:import|export)\s+(type\s+(?!from\b|,))?(?:[\w$*\s{},]*?\bfrom\s*)?(?=['"])/g;
const LAZY = /\b(?:import|\w*[rR]equire(?:\.resolve)?)\s*\(\s*(?=['"])/g;

export function parseSource(text: string): Source {
  const scan: Scan = { code: text.split(''), strings: new Map() };
  scanCode(text, 0, scan, false);
  const code = scan.code.join('');
  const imports: Import[] = [];
  for (const [pattern, lazy] of [
    [STATIC, false],
    [LAZY, true],
  ] as const) {
    for (const match of code.matchAll(pattern)) {
      const specifier = scan.strings.get(match.index + match[0].length);
      if (specifier === undefined) continue;
      const line = code.slice(0, match.index).split('\n').length;
      imports.push({ specifier, line, typeOnly: !lazy && match[1] !== undefined, lazy });
    }
  }
  return { code, imports };
}
