//! What a call asks of the driver: counted by the emulator (`scripts/emulator`), which these tests need.
