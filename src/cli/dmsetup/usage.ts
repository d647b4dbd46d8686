// dmsetup's words, and what `help` says of them. In dmkit's own words; dmsetup's text is dmsetup's.

export const USAGE = `Usage: dmsetup COMMAND [ARGUMENTS] [OPTIONS]      (dmkit takes the same words)

Making and ending
  create NAME [FILE]             a new device: --table TEXT, a file or standard input; -n: none;
                                 -u UUID, -r (read-only), -j MAJOR -m MINOR
  create --concise [SPEC]        several: NAME,UUID,MINOR,rw|ro,LINE[,LINE]... separated by ;
  remove DEVICE...               -f: an error table first; --retry; --deferred
  remove_all                     -f, --deferred
Tables
  load|reload DEVICE [FILE]      into the inactive slot: --table TEXT, a file or standard input; -r
  clear DEVICE...                empties the inactive slot
  suspend|resume DEVICE...       --noflush, --nolockfs
  wipe_table DEVICE...           an error table of the same size, at once
Changing
  rename DEVICE NAME             or: rename DEVICE --setuuid UUID
  message DEVICE SECTOR WORD...
  wait DEVICE [EVENT]            until the event number is another one
  mangle [DEVICE...]
Looking
  ls                             -o devno|devname|blkdevname, --target TYPE, --exec COMMAND,
                                 --tree [-o ascii|utf|compact|inverted|notrunc|...]
  info [DEVICE...]               -c: in columns, with -o FIELDS, -O FIELDS, --noheadings, --separator X,
                                 --nameprefixes, --unquoted, --rows
  table|status [DEVICE...]       --target TYPE, --inactive; table --concise
  deps [DEVICE...]               -o devno|devname|blkdevname
  targets, target-version TYPE..., version, mknodes [DEVICE...], splitname NAME [LVM], help [-c]

DEVICE is a name, /dev/mapper/NAME, dm:NAME, -u UUID, or -j MAJOR -m MINOR.
Everywhere: -v, --manglename auto|hex|none; of dmkit's own: --json, --host.
`;

/** What each command takes: the fewest and the most words. */
export const ARITY: Readonly<Record<string, readonly [min: number, max: number]>> = {
  clear: [0, Number.POSITIVE_INFINITY],
  create: [0, 2],
  deps: [0, Number.POSITIVE_INFINITY],
  help: [0, 0],
  info: [0, Number.POSITIVE_INFINITY],
  load: [0, 2],
  ls: [0, 0],
  mangle: [0, Number.POSITIVE_INFINITY],
  message: [2, Number.POSITIVE_INFINITY],
  mknodes: [0, Number.POSITIVE_INFINITY],
  reload: [0, 2],
  remove: [0, Number.POSITIVE_INFINITY],
  remove_all: [0, 0],
  rename: [1, 2],
  resume: [0, Number.POSITIVE_INFINITY],
  splitname: [1, 2],
  status: [0, Number.POSITIVE_INFINITY],
  suspend: [0, Number.POSITIVE_INFINITY],
  table: [0, Number.POSITIVE_INFINITY],
  'target-version': [1, Number.POSITIVE_INFINITY],
  targets: [0, 0],
  version: [0, 0],
  wait: [0, 2],
  wipe_table: [0, Number.POSITIVE_INFINITY],
};

/** True for a command that dmsetup has and the interpreter does. */
export function isDmsetupWord(word: string | undefined): boolean {
  return word !== undefined && Object.hasOwn(ARITY, word);
}
