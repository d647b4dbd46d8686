// Where dmkit's answer is not the kernel's, and stays so. The runner loads this list: a difference that is not in it is a
// failure, and so is an entry that no recorded case shows any more. docs/differences.md is made from it.

export interface Difference {
  id: string;
  /** What dmkit does. */
  here: string;
  /** What Linux 6.1 does. */
  kernel: string;
  /** Why it stays. */
  why: string;
  /** The answers it explains, by the case's name, the step and both answers; null where no step can show it. */
  match: { name: RegExp; step: RegExp; kernel: RegExp; here: RegExp } | null;
}

const ANY = /(?:)/;

export const differences: readonly Difference[] = [
  {
    id: 'image files',
    here: 'an image file is a device',
    kernel: '`Device lookup failed (-ENODEV)`; a loop device has to be made of it first',
    why: 'image files are what dmkit is for',
    match: { name: /^core\/a regular file$/, step: ANY, kernel: ANY, here: ANY },
  },
  {
    id: 'device size',
    here: 'a device has at most 2^53 - 1 sectors',
    kernel: 'at most 2^54 - 1',
    why: 'sectors are plain numbers; 2^53 sectors are four million terabytes',
    match: { name: /^zero\/larger than a device gets here$/, step: ANY, kernel: ANY, here: ANY },
  },
  {
    id: 'large numbers in reasons',
    here: 'the reason for a refusal names a sector past 2^53 rounded',
    kernel: 'to the last digit',
    why: 'sectors are plain numbers; what is accepted and refused is the same',
    match: {
      name: ANY,
      step: ANY,
      kernel: /too small for target: start=[0-9]{16,}|not aligned|start=[0-9]{16,}/,
      here: /too small for target: start=[0-9]{16,}/,
    },
  },
  {
    id: 'circles',
    here: 'a device that lies below itself, also through its inactive table, is refused with EINVAL',
    kernel: 'accepted; the first request overflows the stack (6.2 and later refuse it, too)',
    why: 'nobody can want it',
    match: {
      name: /^core\//,
      step: /(?:\/dev\/mapper\/|253:|inactive)/,
      kernel: /^(?:ok|ENODEV: linear: Device lookup failed \(-ENODEV\)|0 8 linear 253:0 0)$/,
      here: /^(?:EINVAL: linear: Device lookup failed \(-EINVAL\))?$/,
    },
  },
  {
    id: 'paths before the first resume',
    here: '`/dev/mapper/NAME` is there from the first load on, like the number',
    kernel: 'dmsetup (or udev) makes the path at the first resume; until then it is ENODEV',
    why: 'path and number are the same device',
    match: {
      name: /^core\/the path of a device/,
      step: /^load x /,
      kernel: /^ENODEV: linear: Device lookup failed \(-ENODEV\)$/,
      here: /^ok$/,
    },
  },
  {
    id: 'device numbers of boot parameters',
    here: 'a word of hexadecimal digits is a path, like any other word, and so is `MAJOR:MINOR:OFFSET`',
    kernel: 'where there is no such path, the number of a device: `dead` is 222:173, `254:16:1` is 254:16',
    why: 'a file may be called so; the kernel takes these forms for the sake of its boot parameters',
    match: { name: /^wrong\//, step: /\bdead\b|254:9999:1/, kernel: /-ENXIO\)/, here: /-ENODEV\)/ },
  },
  {
    id: 'read-only below',
    here: 'a write that a writable device passes to a read-only mapped device fails with EPERM',
    kernel: 'it is written: read-only is a matter of whoever opens the node; the kernel logs a warning',
    why: 'what is read-only is not written to',
    match: { name: /^core\/a writable device on a read-only one$/, step: ANY, kernel: ANY, here: ANY },
  },
  {
    id: 'blocks cut by a chunk',
    here: 'a request that a chunk smaller than a logical block cuts is served by a disk in memory',
    kernel: 'what its disk makes of it: EIO from a virtio disk',
    why: 'such a table makes no sense on either side, and both accept it',
    match: { name: /^striped\/chunks on blocks of 4096$/, step: /^contents t$/, kernel: ANY, here: ANY },
  },
  {
    id: 'long type names',
    here: 'a type name of more than 15 characters is an `unknown target type` like any other, EINVAL',
    kernel: 'dmsetup refuses it before the kernel is asked',
    why: 'there is no field in a structure that it would have to fit into',
    match: { name: /^core\/texts/, step: /^load /, kernel: /^type name too long$/, here: /unknown target type$/ },
  },
  {
    id: 'escapes in paths',
    here: '`\\ `, `\\#` and `\\\\` protect a character in a table',
    kernel: 'dmsetup doubles backslashes, so that a path with a blank cannot be written',
    why: 'image files have such paths',
    match: {
      name: /^(?:core\/texts|wrong\/)/,
      step: /\\[\\ #]/,
      kernel: ANY,
      here: ANY,
    },
  },
  {
    id: 'damaged records',
    here: "a store in which two records name one chunk, on either side, or a record sends one to the store's metadata, is refused, with the record's number",
    kernel:
      'it is opened: of two records for a chunk the first counts, two chunks in one place share their data, and metadata is read and written as data',
    why: 'such a store is damaged, and using it damages it further',
    match: {
      name: /^snapshot(?:-merge)?\/(?:two records for one chunk|two chunks in one place|a record that leads to an area)$/,
      step: ANY,
      kernel: ANY,
      here: ANY,
    },
  },
  {
    id: 'behind the last record',
    here: 'bytes behind the last record of a store are cleared when it is opened for writing',
    kernel: 'they stay, and become records when the list reaches them',
    why: 'they would send chunks to places that nobody gave them',
    match: {
      name: /^snapshot\/(?:something behind the last record|a record that leads to the header)(?:, phase|$)/,
      step: /^disk c$/,
      kernel: ANY,
      here: ANY,
    },
  },
  {
    id: 'new stores that do not fit',
    here: 'a device on which a store cannot be made (too small, failing) stays blank: the header is written last',
    kernel: 'the header is written first, and stays',
    why: 'a header in front of an area that was never cleared is a store full of nonsense',
    match: {
      name: /^snapshot\/(?:a store that is too small, |a store that cannot be read$)/,
      step: /^(?:disk|contents) /,
      kernel: ANY,
      here: ANY,
    },
  },
  {
    id: 'lines inside a chunk',
    here: 'a snapshot line that does not start at a multiple of its chunk size is refused',
    kernel: 'accepted; requests are cut at the wrong places, so that one may cross a chunk',
    why: 'such a request reads and writes what is not its own',
    match: { name: /^snapshot\/a line that starts inside a chunk$/, step: ANY, kernel: ANY, here: ANY },
  },
  {
    id: 'discards across chunks',
    here: 'a discard with `discard_zeroes_cow` is about the chunks that it names, wherever it starts',
    kernel:
      'cut into pieces of a chunk from where it starts; a piece goes by its first chunk alone: what it covers of the next one is left out, or what follows the first one in the store is discarded',
    why: 'a discard must not reach what it does not name',
    match: { name: /^snapshot\/discards across chunks/, step: ANY, kernel: ANY, here: ANY },
  },
  {
    id: 'lazy commit',
    here: '`lazy_commit` is a feature of snapshots',
    kernel: '`Unrecognised feature requested`',
    why: "dmkit's own: records may wait for a flush, where a disk's cache might, too",
    match: { name: /^snapshot\/dmkit has a feature of its own$/, step: ANY, kernel: ANY, here: ANY },
  },
  {
    id: 'no room below a store',
    here: 'where the file below a store finds no room (ENOSPC), that write to the snapshot fails with ENOSPC and nothing else does',
    kernel: 'the snapshot is invalid',
    why: 'a sparse file on a full disk is a common thing here, and nothing is lost by it',
    match: null,
  },
  {
    id: 'invalid before the origin goes on',
    here: 'that a snapshot is invalid is durable in its store before the write goes on that made it so',
    kernel: 'the header is written, without a flush',
    why: 'after a crash an origin that moved on must not find a valid store',
    match: null,
  },
  {
    id: 'one write for a new chunk',
    here: 'the first write to a part of a chunk is one read of the origin and one write to the store',
    kernel: 'the chunk is copied, and the write follows',
    why: 'the same content, with one write less',
    match: null,
  },
  {
    id: 'merging N',
    here: '`snapshot-merge` refuses a store of type N',
    kernel: '6.1 accepts it, and crashes at the resume; later ones refuse it',
    why: 'nothing is on the disk that could be merged',
    match: null,
  },
  {
    id: 'remote disks',
    here: 'an NBD URI is a device, connected by the load; it prints in one spelling, with percent signs where blanks were',
    kernel: '`Device lookup failed`; an nbd device has to be attached first',
    why: 'a leg or an origin may be on another machine',
    match: null,
  },
  {
    id: 'file of a mounted loop device',
    here: 'an image file is not opened for writing while a loop device over it is mounted or has another exclusive user',
    kernel: 'a second loop device over the file can be made and written to, and the file system is damaged',
    why: 'the mounted file system keeps copies of its own, and does not learn of the other writes',
    match: null,
  },
  {
    id: 'one flush a device',
    here: 'one flush for each lower device',
    kernel: 'one for each line and stripe',
    why: 'the same is durable, sooner',
    match: null,
  },
  {
    id: 'which error of several',
    here: 'of several pieces of a request that failed, the one at the lowest sector gives the error',
    kernel: 'the one that ended last',
    why: 'errno and sector belong together, and the answer is always the same one',
    match: null,
  },
  {
    id: 'events of one request',
    here: 'each failing piece of a request raises its event',
    kernel: 'failures that end together may raise one event together',
    why: 'how many is a matter of time there; none is lost here',
    match: {
      name: ANY,
      step: /^info /,
      kernel: /^[LIsrw-]+:[0-9]+:[0-9]+:[1-9][0-9]*$/,
      here: /^[LIsrw-]+:[0-9]+:[0-9]+:[1-9][0-9]*$/,
    },
  },
];
