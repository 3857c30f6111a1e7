# Prints the time-stamp counter in decimal and a newline. A static program without a library: x86-64 Linux calls only.
        .intel_syntax noprefix
        .globl  _start
        .text
_start:
        rdtsc
        shl     rdx, 32
        or      rax, rdx

        # Digits are made from the last to the first, below the newline.
        lea     rsi, [rip + end]
        mov     ecx, 10
digit:
        xor     edx, edx
        div     rcx
        add     dl, '0'
        dec     rsi
        mov     [rsi], dl
        test    rax, rax
        jnz     digit

        mov     eax, 1                  # write(1, rsi, rdx)
        mov     edi, 1
        lea     rdx, [rip + end + 1]
        sub     rdx, rsi
        syscall
        mov     eax, 60                 # exit(0)
        xor     edi, edi
        syscall

        .data
        .skip   20                      # the most digits that 64 bits have
end:    .byte   '\n'
