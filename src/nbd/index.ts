// An entry of the package: its exports come with the parts behind it.
export {};
