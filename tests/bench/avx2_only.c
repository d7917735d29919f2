// Preloaded into a process (LD_PRELOAD), it makes cpuid report a processor with AVX2 and FMA, without VNNI, AVX-512 or
// AMX. Where the processor can't make cpuid fault (Intel since Ivy Bridge can, AMD since Zen 5), nothing is changed.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012  // of arch_prctl: 0 lets cpuid raise SIGSEGV, 1 lets it run
#define BIT(n) (1u << (n))

// What leaf 7 says of AVX-512, VNNI and AMX.
static const uint32_t HIDDEN[2][4] = {
    {0,
     BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31),
     BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14),
     BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)},
    {BIT(4) | BIT(5) | BIT(21) | BIT(23), 0, 0, BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)},
};

static int (*set_action)(int, const struct sigaction *, struct sigaction *);
static struct sigaction others;  // what the program wants to happen at its own faults

static void cpuid(uint32_t found[4]) {
  uint32_t leaf = found[0], part = found[2];
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __asm__ volatile("cpuid" : "=a"(found[0]), "=b"(found[1]), "=c"(found[2]), "=d"(found[3]) : "a"(leaf), "c"(part));
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  for (int i = 0; i < 4 && leaf == 7 && part < 2; i++) found[i] &= ~HIDDEN[part][i];
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)registers[REG_RIP];
  if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) {
    uint32_t found[4] = {registers[REG_RAX], 0, registers[REG_RCX], 0};
    cpuid(found);
    registers[REG_RAX] = found[0];
    registers[REG_RBX] = found[1];
    registers[REG_RCX] = found[2];
    registers[REG_RDX] = found[3];
    registers[REG_RIP] += 2;
  } else if (others.sa_flags & SA_SIGINFO) {
    others.sa_sigaction(number, info, context);
  } else if (others.sa_handler != SIG_DFL && others.sa_handler != SIG_IGN) {
    others.sa_handler(number);
  } else {
    set_action(SIGSEGV, &others, NULL);  // and fault again
  }
}

int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  if (!set_action) set_action = (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");
  if (number != SIGSEGV) return set_action(number, action, old);
  if (old) *old = others;
  if (action) others = *action;
  return 0;
}

void (*signal(int number, void (*handler)(int)))(int) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
  return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

static int works;

// Whether cpuid is masked.
int avx2_only(void) { return works; }

__attribute__((constructor)) static void start(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  sigaction(SIGUSR2, NULL, &others);  // finds the real one; the default action
  others.sa_handler = SIG_DFL;
  set_action(SIGSEGV, &action, NULL);
  works = syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0;
}
