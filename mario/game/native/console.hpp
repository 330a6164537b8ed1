// The console: CPU, PPU, RAM, a cartridge, two controllers, and its save-states. A CPU cycle
// lasts three dots of the PPU (nesdev "Cycle reference chart").
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "bus.hpp"
#include "cartridge.hpp"
#include "controller.hpp"
#include "cpu.hpp"
#include "palette.hpp"
#include "ppu.hpp"
#include "types.hpp"

namespace nes {

// Everything that changes while the console runs: plain data, copied as a whole.
struct MachineState {
  CpuState cpu;
  std::int32_t wait = 0;  // CPU cycles until the next instruction begins
  bool odd_cycle = false;  // whether an odd number of CPU cycles has passed since power-on
  std::array<Controller, 2> controllers{};
  PpuState ppu;
  std::array<Byte, kRamBytes> ram{};
};

class Console {
 public:
  // nes-py's frame: a fixed number of CPU cycles. The PPU's frame is 1.5 dots shorter on average, so
  // the border between two frames drifts slowly through the picture.
  static constexpr int kCyclesPerFrame = 29781;

  explicit Console(std::shared_ptr<const Cartridge> cartridge);
  // Not copyable: parts point into this object.
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // Powers the console off and on.
  void reset();

  // Runs one frame with these buttons held. Draws it into `screen` (256 × 240 bytes) unless null.
  void frame(Byte buttons, Byte* screen = nullptr, const Shades& shades = kColourShades);

  // Draws the last frame again, from the state before it; black where there is none.
  void redraw(Byte* screen, const Shades& shades);

  const std::array<Byte, kRamBytes>& ram() const { return now_.ram; }
  void poke(std::size_t address, Byte value) { now_.ram[address] = value; }
  const Cartridge& cartridge() const { return *cartridge_; }

  // A save-state is the present machine and the one before the last frame, to draw from: header
  // with version, cartridge and CRC-32, then the fields in a fixed order, little-endian.
  std::vector<Byte> save() const;
  // Throws SaveStateError and changes nothing when the bytes are no save-state of this cartridge.
  void load(const Byte* data, std::size_t size);

  // The same in memory, for copies within one process.
  struct Snapshot {
    MachineState now, before;
    bool has_before;
  };
  Snapshot snapshot() const { return {now_, before_, has_before_}; }
  void restore(const Snapshot& snapshot) {
    now_ = snapshot.now;
    before_ = snapshot.before;
    has_before_ = snapshot.has_before;
    ppu_.state_replaced();
  }

 private:
  void run();

  std::shared_ptr<const Cartridge> cartridge_;
  MachineState now_;
  MachineState before_;
  bool has_before_ = false;
  Ppu ppu_;
  Bus bus_;
  Cpu cpu_;
};

}  // namespace nes
