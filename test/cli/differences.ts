// Everything in which dmkit's dmsetup differs from the recorded one on purpose. A difference that is not here fails the
// test, and so does one that is here and is none.

export interface Difference {
  /** The recorded command. */
  command: string;
  why: string;
  /** What dmkit prints, both streams together in the order of the recording. */
  output: string[];
  code?: number;
}

const SELECT = 'selecting devices by an expression (-S) is not there';
const NO_SELECT = ['Selecting devices by -S or --select is not there in dmkit.', 'Command failed.'];

const HEADING = 'Name             Maj Min Stat Open Targ Event  UUID                            ';

export const DIFFERENCES: readonly Difference[] = [
  {
    command: 'dmsetup targets',
    why: 'fewer targets',
    output: [
      'snapshot-merge   v1.5.0',
      'snapshot-origin  v1.9.0',
      'snapshot         v1.16.0',
      'zero             v1.1.0',
      'striped          v1.6.0',
      'linear           v1.4.0',
      'error            v1.5.0',
    ],
  },
  ...['info -S name=lin', "info -c -S 'segments>1'", 'table -S name=multi'].map((words) => ({
    command: `dmsetup ${words}`,
    why: SELECT,
    output: NO_SELECT,
    code: 1,
  })),
  {
    command: "echo '0 18014398509481983 zero' | dmsetup create x && blockdev --getsz /dev/dm-0; dmsetup remove x",
    why: 'a device has up to 2^53 - 1 sectors, not 2^54 - 1',
    output: [
      'device-mapper: reload ioctl on x (253:0) failed: Invalid argument',
      'Command failed.',
      'device-mapper: remove ioctl on x  failed: No such device or address',
      'Command failed.',
    ],
    code: 1,
  },
  {
    command: "dmsetup create m6 -j 99 -m 6 --table '0 8 zero'; dmsetup info -c",
    why: 'a foreign major number is refused at once; the kernel makes the device and dmsetup cannot resume or remove it',
    output: [
      'device-mapper: create ioctl on m6 (99:6) failed: No such device or address',
      'Command failed.',
      HEADING,
      'a                253   0 L--w    0    1      0                                 ',
      'b                253   1 L--w    0    1      0 U1                              ',
      'm5               253   5 L--w    0    1      0                                 ',
    ],
  },
  {
    command:
      "dmsetup remove a; dmsetup create newa --table '0 8 zero'; dmsetup create newb --table '0 8 zero'; dmsetup info -c -o name,minor",
    why: 'the device m6 of the line before was not made',
    output: [
      'Name             Min',
      'b                  1',
      'm5                 5',
      'newa               0',
      'newb               2',
    ],
  },
];
