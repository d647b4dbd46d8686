// What is at the bottom of a stack: memory, image files, block devices, and the registry that makes each one object.
export { MemoryDevice, type MemoryDeviceOptions } from './memory.ts';
