//! The inner loops of [`scalar`](super::scalar) for processors that are emulated.
//!
//! An emulator translates an addition into one instruction or two, but looks each address up in a
//! table, and has to have all its registers in order for that: ten times the work. Compilers, who do
//! not know, keep in memory what finds no room in registers. Here nothing but the content is there:
//! what else does not fit is in vector registers, which an emulator has as close as the others.
//! Carries and flags are work as well, and so is the upper half of a register that has to be cleared:
//! sums are of 64 bits, of which the upper half may be anything until a rotation clears it.
#![expect(unsafe_code)]

use std::arch::naked_asm;

use super::scalar::{BLOCK, PART};

/// The processor has the instructions that are used here.
#[derive(Clone, Copy)]
pub(super) struct Assembly(());

impl Assembly {
    pub(super) fn find() -> Option<Self> {
        let there = std::is_x86_feature_detected!("bmi2") && std::is_x86_feature_detected!("sse4.1");
        there.then_some(Self(()))
    }

    /// Exclusive or of content and key stream; the state is of the block after it then (RFC 8439,
    /// section 2.4).
    pub(super) fn xor(self, state: &mut [u32; 16], content: &mut [[u8; BLOCK]]) {
        if !content.is_empty() {
            // SAFETY: both are written to within their bounds, and the processor has the instructions.
            unsafe { xor(state, content.as_mut_ptr(), content.len()) }
        }
    }

    /// `h = (h + block) * r` for each block, nearly reduced modulo 2^130 - 5 (RFC 8439, section 2.5),
    /// in limbs of 44, 44 and 42 bits. The last two of `r` are the last two limbs again, twenty times.
    pub(super) fn multiply(self, h: &mut [u64; 3], r: &[u64; 5], content: &[[u8; PART]]) {
        if !content.is_empty() {
            // SAFETY: what is read and written is within bounds, and the processor has the instructions.
            unsafe { multiply(h, r, content.as_ptr(), content.len()) }
        }
    }
}

/// Registers are the caller's.
macro_rules! save {
    () => {
        "push rbx\npush rbp\npush r12\npush r13\npush r14\npush r15"
    };
}

/// They are as they were.
macro_rules! restore_and_return {
    () => {
        "pop r15\npop r14\npop r13\npop r12\npop rbp\npop rbx\nret"
    };
}

/// A quarter of a quarter round: `sum += addend; turned = (turned ^ sum) >>> by`.
macro_rules! step {
    ($sum:literal $addend:literal $turned:literal $by:literal) => {
        concat!(
            "add ", $sum, ", r", $addend, "\n", "xor r", $turned, ", ", $sum, "\n", "rorx r", $turned,
            "d, r", $turned, "d, ", $by, "\n",
        )
    };
}

/// Quarter rounds side by side (RFC 8439, section 2.1), which rotates to the left.
macro_rules! quarters {
    ($($a:literal $b:literal $c:literal $d:literal),+) => {
        concat!(
            $(step!($a $b $d 16),)+
            $(step!($c $d $b 20),)+
            $(step!($a $b $d 24),)+
            $(step!($c $d $b 25),)+
        )
    };
}

/// Where it is: the state in xmm0 to xmm3, the counter's step in xmm4, place and number of blocks in
/// xmm5 and xmm6. Of the sixteen words that are mixed, in their order,
///
/// ```text
/// rax rbx rcx rdx   r8 r9 r10 r11   rsi rdi rbp r15   r12 r13 r14 and r12 again
/// ```
/// because there are fifteen registers: the first and the last of the last row are never needed
/// together, and who is not waits in xmm7 or xmm8.
#[unsafe(naked)]
unsafe extern "sysv64" fn xor(state: &mut [u32; 16], content: *mut [u8; BLOCK], blocks: usize) {
    naked_asm!(
        save!(),
        "push rdi",
        "movdqu xmm0, [rdi]",
        "movdqu xmm1, [rdi + 16]",
        "movdqu xmm2, [rdi + 32]",
        "movdqu xmm3, [rdi + 48]",
        "mov eax, 1",
        "movd xmm4, eax",
        "movq xmm5, rsi",
        "movq xmm6, rdx",
        // A block.
        "2:",
        "pextrd eax, xmm0, 0",
        "pextrd ebx, xmm0, 1",
        "pextrd ecx, xmm0, 2",
        "pextrd edx, xmm0, 3",
        "pextrd r8d, xmm1, 0",
        "pextrd r9d, xmm1, 1",
        "pextrd r10d, xmm1, 2",
        "pextrd r11d, xmm1, 3",
        "pextrd esi, xmm2, 0",
        "pextrd edi, xmm2, 1",
        "pextrd ebp, xmm2, 2",
        "pextrd r15d, xmm2, 3",
        "pextrd r12d, xmm3, 3",
        "movd xmm8, r12d",
        "pextrd r12d, xmm3, 0",
        "pextrd r13d, xmm3, 1",
        "pextrd r14d, xmm3, 2",
        // Two rounds, ten times: of columns, then of diagonals.
        ".rept 10",
        quarters!("rax" 8 "rsi" 12),
        "pinsrd xmm7, r12d, 0",
        "pextrd r12d, xmm8, 0",
        quarters!("rbx" 9 "rdi" 13, "rcx" 10 "rbp" 14, "rdx" 11 "r15" 12),
        quarters!("rax" 9 "rbp" 12),
        "pinsrd xmm8, r12d, 0",
        "pextrd r12d, xmm7, 0",
        quarters!("rbx" 10 "r15" 12, "rcx" 11 "rsi" 13, "rdx" 8 "rdi" 14),
        ".endr",
        // What comes out is added to the state, and changes the content.
        "pinsrd xmm9, eax, 0",
        "pinsrd xmm9, ebx, 1",
        "pinsrd xmm9, ecx, 2",
        "pinsrd xmm9, edx, 3",
        "pinsrd xmm10, r8d, 0",
        "pinsrd xmm10, r9d, 1",
        "pinsrd xmm10, r10d, 2",
        "pinsrd xmm10, r11d, 3",
        "pinsrd xmm11, esi, 0",
        "pinsrd xmm11, edi, 1",
        "pinsrd xmm11, ebp, 2",
        "pinsrd xmm11, r15d, 3",
        "pinsrd xmm12, r12d, 0",
        "pinsrd xmm12, r13d, 1",
        "pinsrd xmm12, r14d, 2",
        "pextrd r12d, xmm8, 0",
        "pinsrd xmm12, r12d, 3",
        "paddd xmm9, xmm0",
        "paddd xmm10, xmm1",
        "paddd xmm11, xmm2",
        "paddd xmm12, xmm3",
        "movq rsi, xmm5",
        "movdqu xmm13, [rsi]",
        "pxor xmm9, xmm13",
        "movdqu [rsi], xmm9",
        "movdqu xmm13, [rsi + 16]",
        "pxor xmm10, xmm13",
        "movdqu [rsi + 16], xmm10",
        "movdqu xmm13, [rsi + 32]",
        "pxor xmm11, xmm13",
        "movdqu [rsi + 32], xmm11",
        "movdqu xmm13, [rsi + 48]",
        "pxor xmm12, xmm13",
        "movdqu [rsi + 48], xmm12",
        "paddd xmm3, xmm4",
        "add rsi, 64",
        "movq xmm5, rsi",
        "movq rdx, xmm6",
        "dec rdx",
        "movq xmm6, rdx",
        "jnz 2b",
        "pop rdi",
        "movdqu [rdi + 48], xmm3",
        restore_and_return!(),
    )
}

/// `d += limb * factor`, where `d` is in rbx and rax.
macro_rules! add_product {
    ($limb:literal $factor:literal) => {
        concat!(
            "mov rdx, ",
            $limb,
            "\n",
            "mulx rbp, rcx, ",
            $factor,
            "\n",
            "add rax, rcx\n",
            "adc rbx, rbp\n"
        )
    };
}

/// `d = carry + limb * factor`, where `carry` is in rax, and `d` in rbx and rax.
macro_rules! begin_product {
    ($limb:literal $factor:literal) => {
        concat!("mov rdx, ", $limb, "\n", "mulx rbx, rcx, ", $factor, "\n", "add rax, rcx\n", "adc rbx, 0\n")
    };
}

/// `d >>= bits`, for a `d` that is in rbx and rax before, and in rax alone after it.
macro_rules! carry {
    ($bits:literal $others:literal) => {
        concat!("shr rax, ", $bits, "\n", "shl rbx, ", $others, "\n", "or rax, rbx\n")
    };
}

/// Where it is: the limbs of `h` in r8 to r10, the numbers of `r` in r11 to r15, place and number of
/// blocks in xmm0 and xmm1.
#[unsafe(naked)]
unsafe extern "sysv64" fn multiply(
    h: &mut [u64; 3],
    r: &[u64; 5],
    content: *const [u8; PART],
    blocks: usize,
) {
    naked_asm!(
        save!(),
        "push rdi",
        "movq xmm0, rdx",
        "movq xmm1, rcx",
        "mov r8, [rdi]",
        "mov r9, [rdi + 8]",
        "mov r10, [rdi + 16]",
        "mov r11, [rsi]",
        "mov r12, [rsi + 8]",
        "mov r13, [rsi + 16]",
        "mov r14, [rsi + 24]",
        "mov r15, [rsi + 32]",
        // A block, which is added with one bit behind its end.
        "2:",
        "movq rdx, xmm0",
        "mov rax, [rdx]",
        "mov rcx, [rdx + 8]",
        "add rdx, 16",
        "movq xmm0, rdx",
        "mov rbx, {low_44}",
        "mov rbp, rax",
        "and rbp, rbx",
        "add r8, rbp",
        "shr rax, 44",
        "mov rbp, rcx",
        "shl rbp, 20",
        "or rax, rbp",
        "and rax, rbx",
        "add r9, rax",
        "shr rcx, 24",
        "add r10, rcx",
        "mov rax, {end}",
        "add r10, rax",
        // The first limb of the product,
        "mov rdx, r8",
        "mulx rbx, rax, r11",
        add_product!("r9" "r15"),
        add_product!("r10" "r14"),
        "mov rsi, {low_44}",
        "and rsi, rax",
        carry!(44 20),
        // the second,
        begin_product!("r8" "r12"),
        add_product!("r9" "r11"),
        add_product!("r10" "r15"),
        "mov rdi, {low_44}",
        "and rdi, rax",
        carry!(44 20),
        // and the third.
        begin_product!("r8" "r13"),
        add_product!("r9" "r12"),
        add_product!("r10" "r11"),
        "mov r10, {low_42}",
        "and r10, rax",
        carry!(42 22),
        // 2^130 is 5.
        "lea rax, [rax + 4 * rax]",
        "add rsi, rax",
        "mov r8, {low_44}",
        "and r8, rsi",
        "shr rsi, 44",
        "lea r9, [rdi + rsi]",
        "movq rcx, xmm1",
        "dec rcx",
        "movq xmm1, rcx",
        "jnz 2b",
        "pop rdi",
        "mov [rdi], r8",
        "mov [rdi + 8], r9",
        "mov [rdi + 16], r10",
        restore_and_return!(),
        low_44 = const (1_u64 << 44) - 1,
        low_42 = const (1_u64 << 42) - 1,
        end = const 1_u64 << 40,
    )
}
