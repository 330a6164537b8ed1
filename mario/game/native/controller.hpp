// The standard controller on a port (nesdev "Standard controller"): a shift register of 8 buttons.
#pragma once

#include "types.hpp"

namespace nes {

struct Controller {
  Byte buttons = 0;    // pressed buttons; bit 0 is A, read first
  Byte shift = 0;      // buttons left to read
  bool strobe = true;  // while high, the register keeps reloading

  void write_strobe(Byte value) {
    strobe = value & 1;
    if (!strobe) shift = buttons;
  }

  // Returns D0 in bit 0; bit 6 is open bus, the high byte of the address $4016 last on it.
  Byte read() {
    Byte bit;
    if (strobe) {
      bit = buttons & 1;
    } else {
      bit = shift & 1;
      shift >>= 1;
    }
    return bit | 0x40;
  }
};

}  // namespace nes
