// What the CPU sees at each address (nesdev "CPU memory map"): RAM, registers, program memory.
#pragma once

#include <array>

#include "cartridge.hpp"
#include "controller.hpp"
#include "ppu.hpp"
#include "types.hpp"

namespace nes {

class Bus {
 public:
  Bus(const Cartridge& cartridge, Byte* ram, Controller* controllers, Ppu& ppu)
      : ram_(ram), prg_(cartridge.prg()), controllers_(controllers), ppu_(ppu) {
    for (std::size_t page = 0; page < 4; ++page) read_[page] = write_[page] = ram;
    for (std::size_t page = 16; page < kPages; ++page) read_[page] = prg_ + (page - 16) * kPageBytes;
  }

  // `odd`: whether an odd number of CPU cycles has passed when the frame begins.
  void begin_frame(bool odd) { odd_ = odd; }

  Byte* ram() const { return ram_; }
  const Byte* prg() const { return prg_; }

  // Every access has its CPU cycle in the frame, so that the PPU can catch up.
  Byte read(Address address, int time) {
    const Byte* page = read_[address / kPageBytes];
    return page ? page[address % kPageBytes] : read_register(address, time);
  }
  // Returns the cycles that the CPU is stalled for.
  int write(Address address, Byte value, int time) {
    Byte* page = write_[address / kPageBytes];
    if (page) {
      page[address % kPageBytes] = value;
      return 0;
    }
    return write_register(address, value, time);
  }
  // Without side effects; registers and open bus read 0.
  Byte peek(Address address) const {
    const Byte* page = read_[address / kPageBytes];
    return page ? page[address % kPageBytes] : Byte{0};
  }

  // The CPU polls $2002 from cycle `time` on, every `period` cycles, until sprite 0 has hit
  // (`until_hit`) or the flag is clear, but not beyond `limit`. Returns the cycle of the first read
  // that ends the loop, or of the last one before the limit.
  int skip_poll(int time, int period, bool until_hit, int limit);

 private:
  static constexpr std::size_t kPageBytes = 0x800;
  static constexpr std::size_t kPages = 32;

  Byte read_register(Address address, int time);
  int write_register(Address address, Byte value, int time);

  // A CPU cycle comes after the three dots that it lasts.
  void catch_up(int time) { ppu_.catch_up(3 * (time + 1)); }

  Byte* ram_;
  const Byte* prg_;
  Controller* controllers_;
  Ppu& ppu_;
  bool odd_ = false;
  std::array<const Byte*, kPages> read_{};
  std::array<Byte*, kPages> write_{};
};

}  // namespace nes
