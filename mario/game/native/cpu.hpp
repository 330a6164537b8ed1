// The 2A03's 6502 core (nesdev "CPU", "Instruction reference").
#pragma once

#include <cstdint>

#include "bus.hpp"
#include "types.hpp"

namespace nes {

struct CpuState {
  Address pc = 0;
  Byte sp = 0xFD;
  Byte a = 0, x = 0, y = 0;
  // Status flags in nes-py's order, which is the reverse of the hardware's (bit 0 is N, bit 7 C):
  // what PHP and an interrupt push is visible in RAM. At power-on: I, D and the unused bit 2.
  Byte p = 0x34;
};

class Cpu {
 public:
  Cpu(CpuState& state, Bus& bus) : s_(state), bus_(bus) {}

  // nesdev "CPU power up state", the parts that nes-py has.
  void reset() {
    s_ = CpuState{};
    s_.pc = static_cast<Address>(bus_.peek(0xFFFC) | bus_.peek(0xFFFD) << 8);
  }

  // Executes instructions while the cycle at which the next one begins is below `limit`; returns
  // that cycle. An instruction takes effect in its first cycle, as in nes-py.
  int run(int time, int limit);

  // A non-maskable interrupt; takes 7 cycles.
  void nmi();

 private:
  CpuState& s_;
  Bus& bus_;
};

}  // namespace nes
