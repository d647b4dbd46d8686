// Boots the guest, under emulation unless the machine's KVM has been seen to work, and never longer than its time limit.
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface BootOptions {
  /** With vmlinuz and initramfs.gz. */
  guestFolder: string;
  accelerator: 'kvm' | 'tcg';
  /** Where console.log and answers.log are written. */
  folder: string;
  jobByteLength: number;
  /** In the order of their nodes, vda first. */
  drives: readonly { path: string; readOnly?: boolean; blockSize?: number }[];
  limitSeconds: number;
  /** Gets what kills the guest, as if its power failed; then there is no telling what went wrong. */
  onStart?: (kill: () => void) => void;
}

const MEMORY_MIB = 384;

function qemuArguments(options: BootOptions): string[] {
  const { guestFolder, folder, jobByteLength, accelerator } = options;
  const cpu = accelerator === 'kvm' ? 'host' : 'max';
  const args = ['-machine', `pc,accel=${accelerator}`, '-cpu', cpu, '-m', String(MEMORY_MIB), '-smp', '1'];
  args.push('-nodefaults', '-display', 'none', '-no-reboot');
  args.push('-serial', `file:${join(folder, 'console.log')}`, '-serial', `file:${join(folder, 'answers.log')}`);
  args.push('-kernel', join(guestFolder, 'vmlinuz'), '-initrd', join(guestFolder, 'initramfs.gz'));
  args.push('-append', `console=ttyS0 loglevel=3 panic=-1 job=${jobByteLength} `);
  for (const [index, { path, readOnly, blockSize }] of options.drives.entries()) {
    // What is discarded reads as zeros, to the byte: so it does here.
    const drive = `file=${path},format=raw,if=none,id=d${index},cache=unsafe,discard=unmap`;
    args.push('-drive', readOnly ? `${drive},readonly=on` : drive);
    const block = blockSize === undefined ? '' : `,logical_block_size=${blockSize},physical_block_size=${blockSize}`;
    args.push('-device', `virtio-blk-pci,drive=d${index}${block}`);
  }
  return args;
}

/** Boots, waits until the guest switches itself off; gives what went wrong, or null. */
export async function boot(options: BootOptions): Promise<string | null> {
  const child = spawn('qemu-system-x86_64', qemuArguments(options), { stdio: ['ignore', 'ignore', 'pipe'] });
  const stop = () => child.kill('SIGKILL');
  process.once('exit', stop);
  options.onStart?.(stop);
  try {
    return await ended(child, options.limitSeconds);
  } finally {
    process.removeListener('exit', stop);
  }
}

function ended(child: ChildProcess, limitSeconds: number): Promise<string | null> {
  return new Promise((resolve) => {
    let message = '';
    let late = false;
    child.stderr?.on('data', (chunk: Buffer) => {
      message += chunk.toString();
    });
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, limitSeconds * 1000);
    child.on('error', (error) => {
      clearTimeout(timer);
      resolve(error.message);
    });
    child.on('close', (code) => {
      clearTimeout(timer);
      if (late) resolve(`the guest ran longer than ${limitSeconds} s`);
      else resolve(code === 0 ? null : `qemu ended with ${code}: ${message.trim()}`);
    });
  });
}

/** `kvm` where a guest under it has got as far as an answer; tried once for each cache folder. */
export async function chooseAccelerator(
  cacheFolder: string,
  tryBoot: (accelerator: 'kvm') => Promise<boolean>,
): Promise<'kvm' | 'tcg'> {
  if (!existsSync('/dev/kvm')) return 'tcg';
  const note = join(cacheFolder, 'accelerator');
  if (existsSync(note)) return readFileSync(note, 'utf8').trim() === 'kvm' ? 'kvm' : 'tcg';
  const works = await tryBoot('kvm');
  writeFileSync(note, works ? 'kvm\n' : 'tcg\n');
  return works ? 'kvm' : 'tcg';
}
