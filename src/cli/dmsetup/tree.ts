// ls --tree: who is built on whom.

/** A device, ours or one below. */
export interface TreeNode {
  text: string;
  /** Below it, in the order they are drawn. */
  lower: TreeNode[];
  upper: TreeNode[];
}

export interface TreeStyle {
  inverted: boolean;
  compact: boolean;
  symbols: TreeSymbols;
  /** Lines are cut at this width; undefined: never. */
  width: number | undefined;
}

interface TreeSymbols {
  more: string;
  middle: string;
  last: string;
  firstOfMany: string;
  only: string;
}

export const ASCII: TreeSymbols = { more: '| ', middle: '|-', last: '`-', firstOfMany: '-+-', only: '---' };
export const UTF8: TreeSymbols = { more: '│ ', middle: '├─', last: '└─', firstOfMany: '─┬─', only: '───' };
/** The line-drawing characters of a VT100. */
export const VT100: TreeSymbols = {
  more: '\x1b(0x\x1b(B ',
  middle: '\x1b(0tq\x1b(B',
  last: '\x1b(0mq\x1b(B',
  firstOfMany: '\x1b(0qwq\x1b(B',
  only: '\x1b(0qqq\x1b(B',
};

/** The lines of the trees that stand on `nodes` without a parent. */
export function drawTrees(nodes: readonly TreeNode[], style: TreeStyle): string[] {
  const parents = (node: TreeNode): TreeNode[] => (style.inverted ? node.lower : node.upper);
  const lines: string[] = [];
  for (const root of nodes) {
    if (parents(root).length > 0) continue;
    if (style.compact) drawCompact(root, '', '', style, lines);
    else drawPlain(root, '', null, style, lines);
  }
  const { width } = style;
  return width === undefined ? lines : lines.map((line) => [...line].slice(0, width).join(''));
}

function childrenOf(node: TreeNode, style: TreeStyle): TreeNode[] {
  // Nothing is drawn of a node that has nothing to say.
  return (style.inverted ? node.upper : node.lower).filter((child) => child.text !== '');
}

/** @param last the last of its parent; null for a root */
function drawPlain(node: TreeNode, prefix: string, last: boolean | null, style: TreeStyle, lines: string[]): void {
  const { symbols } = style;
  if (node.text !== '')
    lines.push(last === null ? node.text : `${prefix}${last ? symbols.last : symbols.middle}${node.text}`);
  const below = last === null ? ' ' : `${prefix}${last ? '  ' : symbols.more} `;
  const children = childrenOf(node, style);
  for (const [index, child] of children.entries()) {
    drawPlain(child, below, index === children.length - 1, style, lines);
  }
}

/** Children begin on the line of their parent. `lead` is what stands before the node on its own line. */
function drawCompact(node: TreeNode, lead: string, prefix: string, style: TreeStyle, lines: string[]): void {
  const { symbols } = style;
  const children = childrenOf(node, style);
  const line = `${lead}${node.text}`;
  if (children.length === 0) {
    if (line !== '') lines.push(line);
    return;
  }
  const indent = `${prefix}${' '.repeat(node.text.length)} `;
  for (const [index, child] of children.entries()) {
    const isLast = index === children.length - 1;
    const below = `${indent}${isLast ? '  ' : symbols.more}`;
    if (index === 0) drawCompact(child, `${line}${isLast ? symbols.only : symbols.firstOfMany}`, below, style, lines);
    else drawCompact(child, `${indent}${isLast ? symbols.last : symbols.middle}`, below, style, lines);
  }
}
