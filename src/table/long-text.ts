// Table text that is too long to be one string: a new string of megabytes takes its thread tens of milliseconds, most of
// them for memory that is touched for the first time. It stays in the pieces in which it came.

/** Text in pieces. They may cut lines, but no character. */
export class LongText {
  readonly pieces: readonly string[];

  constructor(pieces: readonly string[]) {
    this.pieces = pieces;
  }

  /** True where `word` is in the piece at `index`, or begins in an earlier piece and ends in this one. */
  pieceMentions(index: number, word: string): boolean {
    const piece = this.pieces[index]!;
    if (piece.includes(word)) return true;
    let seam = piece.slice(0, word.length - 1);
    let missing = word.length - 1;
    for (let before = index - 1; before >= 0 && missing > 0; before--) {
      const end = this.pieces[before]!.slice(-missing);
      seam = end + seam;
      missing -= end.length;
    }
    return seam.includes(word);
  }

  /** All of it in one string. */
  toString(): string {
    return this.pieces.join('');
  }
}

/** Text of a table. */
export type TableText = string | LongText;
