// Tables of different shapes over one image, for the rows in process and over NBD.
export const LINE_COUNT = 1 << 20;
export const LINE_SECTORS = 8;
const STRIPE_COUNT = 4;
const STRIPE_CHUNK_SECTORS = 128;

const shuffledStart = (index, sectors) => ((index * 40503) % (sectors / LINE_SECTORS)) * LINE_SECTORS;

/** 2^20 lines; each leads to another block of the image than its neighbours. */
export function lineEntries(path, sectors) {
  return Array.from({ length: LINE_COUNT }, (_, i) => ({
    sector: i * LINE_SECTORS,
    sectorCount: LINE_SECTORS,
    type: 'linear',
    params: `${path} ${shuffledStart(i, sectors)}`,
  }));
}

/** The same as text. */
export function lineTexts(path, sectors) {
  return lineEntries(path, sectors).map(
    ({ sector, sectorCount, type, params }) => `${sector} ${sectorCount} ${type} ${params}`,
  );
}

export function stripe(path, sectors) {
  const leg = sectors / STRIPE_COUNT;
  const legs = Array.from({ length: STRIPE_COUNT }, (_, i) => `${path} ${i * leg}`).join(' ');
  return `0 ${sectors} striped ${STRIPE_COUNT} ${STRIPE_CHUNK_SECTORS} ${legs}`;
}

/** Three devices on top of each other, as names and tables, the lowest first. */
export function layers(path, sectors) {
  return [
    ['low', path],
    ['middle', '/dev/mapper/low'],
    ['top', '/dev/mapper/middle'],
  ].map(([name, below]) => [name, `0 ${sectors} linear ${below} 0`]);
}
