export interface Hash {
  update(bytes: Uint8Array): Hash;
  digest(): Uint8Array;
}
export const sha256: { create(): Hash };
