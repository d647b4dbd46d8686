#!/usr/bin/env node
// The command dmkit.
import { version } from '../index.ts';

process.stdout.write(`dmkit ${version}\n`);
