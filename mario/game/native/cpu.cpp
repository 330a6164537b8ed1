// Executes instructions. Cycle counts are those of the nesdev "Instruction reference", with nes-py's
// four departures: a taken branch to another page costs 2 more (not 1), INC/DEC/shift abs,X pay for
// a page crossing, BRK takes 14, and an opcode without official meaning is skipped in one cycle.
#include "cpu.hpp"

namespace nes {
namespace {

// Bits of CpuState::p (nesdev "Status flags"), in nes-py's order.
enum Flag : Byte { kN = 0x01, kV = 0x02, kUnused = 0x04, kB = 0x08, kD = 0x10, kI = 0x20, kZ = 0x40, kC = 0x80 };

constexpr Address kNmiVector = 0xFFFA;
constexpr Address kIrqVector = 0xFFFE;

constexpr int crossed(Address a, Address b) { return (a ^ b) & 0xFF00 ? 1 : 0; }

}  // namespace

// Pushes the return address and the flags, and goes on at the vector (nesdev "CPU interrupts").
void Cpu::nmi() {
  Byte* const stack = bus_.ram() + 0x100;
  stack[s_.sp--] = static_cast<Byte>(s_.pc >> 8);
  stack[s_.sp--] = static_cast<Byte>(s_.pc);
  stack[s_.sp--] = s_.p | kI;
  s_.p |= kI;
  s_.pc = static_cast<Address>(bus_.peek(kNmiVector) | bus_.peek(kNmiVector + 1) << 8);
}

int Cpu::run(int time, int limit) {
  Bus& bus = bus_;
  Byte* const ram = bus.ram();  // the zero page
  Byte* const stack = ram + 0x100;
  const Byte* const prg = bus.prg();

  // Registers live in locals while instructions run. Z and N are kept as the value they follow
  // from: Z is `zero == 0`, N is bit 7 of `sign`.
  Address pc = s_.pc;
  Byte sp = s_.sp, a = s_.a, x = s_.x, y = s_.y;
  Byte zero = s_.p & kZ ? 0 : 1;
  Byte sign = s_.p & kN ? 0x80 : 0;
  bool carry = s_.p & kC, overflow = s_.p & kV;
  Byte others = s_.p & (kUnused | kB | kD | kI);
  int t = time;

  const auto set_zn = [&](Byte value) { zero = sign = value; };
  const auto get_p = [&]() -> Byte {
    return static_cast<Byte>(others | (sign & 0x80 ? kN : 0) | (overflow ? kV : 0) |
                             (zero == 0 ? kZ : 0) | (carry ? kC : 0));
  };
  const auto set_p = [&](Byte p) {
    zero = p & kZ ? 0 : 1;
    sign = p & kN ? 0x80 : 0;
    carry = p & kC;
    overflow = p & kV;
    others = p & (kUnused | kB | kD | kI);
  };
  const auto push = [&](Byte value) { stack[sp--] = value; };
  const auto pull = [&]() -> Byte { return stack[++sp]; };
  const auto read = [&](Address address) -> Byte { return bus.read(address, t); };

  const auto ora = [&](Byte m) { set_zn(a |= m); };
  const auto and_ = [&](Byte m) { set_zn(a &= m); };
  const auto eor = [&](Byte m) { set_zn(a ^= m); };
  const auto lda = [&](Byte m) { set_zn(a = m); };
  const auto ldx = [&](Byte m) { set_zn(x = m); };
  const auto ldy = [&](Byte m) { set_zn(y = m); };
  const auto adc = [&](Byte m) {
    const int sum = a + m + carry;
    carry = sum > 0xFF;
    overflow = (a ^ sum) & (m ^ sum) & 0x80;
    set_zn(a = static_cast<Byte>(sum));
  };
  const auto sbc = [&](Byte m) { adc(static_cast<Byte>(~m)); };
  const auto compare = [&](Byte reg, Byte m) {
    carry = reg >= m;
    set_zn(static_cast<Byte>(reg - m));
  };
  const auto cmp = [&](Byte m) { compare(a, m); };
  const auto bit = [&](Byte m) {
    zero = a & m;
    sign = m;
    overflow = m & 0x40;
  };
  const auto asl = [&](Byte m) -> Byte {
    carry = m & 0x80;
    const Byte r = static_cast<Byte>(m << 1);
    set_zn(r);
    return r;
  };
  const auto lsr = [&](Byte m) -> Byte {
    carry = m & 1;
    const Byte r = m >> 1;
    set_zn(r);
    return r;
  };
  const auto rol = [&](Byte m) -> Byte {
    const Byte r = static_cast<Byte>(m << 1 | (carry ? 1 : 0));
    carry = m & 0x80;
    set_zn(r);
    return r;
  };
  const auto ror = [&](Byte m) -> Byte {
    const Byte r = static_cast<Byte>(m >> 1 | (carry ? 0x80 : 0));
    carry = m & 1;
    set_zn(r);
    return r;
  };
  const auto inc = [&](Byte m) -> Byte {
    set_zn(++m);
    return m;
  };
  const auto dec = [&](Byte m) -> Byte {
    set_zn(--m);
    return m;
  };

  Byte window[3];
  while (t < limit) {
    const Byte* code;
    if (pc >= 0x8000) {
      code = prg + (pc & 0x7FFF);
    } else {  // a program in RAM, or one that has run away
      for (int i = 0; i < 3; ++i) window[i] = bus.peek(static_cast<Address>(pc + i));
      code = window;
    }
    const Byte lo = code[1];
    const Address word = static_cast<Address>(code[1] | code[2] << 8);

// Effective addresses (nesdev "CPU addressing modes").
#define ZPX static_cast<Byte>(lo + x)
#define ZPY static_cast<Byte>(lo + y)
#define ABX static_cast<Address>(word + x)
#define ABY static_cast<Address>(word + y)
#define POINTER(z) static_cast<Address>(ram[static_cast<Byte>(z)] | ram[static_cast<Byte>((z) + 1)] << 8)
#define IZX POINTER(lo + x)
#define IZY static_cast<Address>(POINTER(lo) + y)
#define DONE(bytes, cycles) \
  pc += (bytes);            \
  t += (cycles);            \
  break

// The eight addressing modes of the accumulator instructions, absolute left out for LDA's sake:
// immediate, zero page, zero page,X, absolute,X, absolute,Y, (indirect,X), (indirect),Y.
#define READ_CASES_BUT_ABSOLUTE(base, op)                                                    \
  case (base) + 0x09: op(lo); DONE(2, 2);                                                    \
  case (base) + 0x05: op(ram[lo]); DONE(2, 3);                                               \
  case (base) + 0x15: op(ram[ZPX]); DONE(2, 4);                                              \
  case (base) + 0x1D: { const Address e = ABX; op(read(e)); DONE(3, 4 + crossed(word, e)); } \
  case (base) + 0x19: { const Address e = ABY; op(read(e)); DONE(3, 4 + crossed(word, e)); } \
  case (base) + 0x01: op(read(IZX)); DONE(2, 6);                                             \
  case (base) + 0x11: { const Address e = IZY; op(read(e)); DONE(2, 5 + crossed(POINTER(lo), e)); }
#define READ_CASES(base, op)          \
  READ_CASES_BUT_ABSOLUTE(base, op)   \
  case (base) + 0x0D: op(read(word)); DONE(3, 4);
// Read, modify, write: both accesses on the same cycle. Zero page, zero page,X, absolute, absolute,X.
#define MODIFY(address, op, bytes, cycles)               \
  {                                                      \
    const Address e = (address);                         \
    const int stall = bus.write(e, op(read(e)), t);      \
    DONE(bytes, (cycles) + stall);                       \
  }
#define MODIFY_CASES(base, op)                                   \
  case (base) + 0x06: ram[lo] = op(ram[lo]); DONE(2, 5);         \
  case (base) + 0x16: { Byte& m = ram[ZPX]; m = op(m); DONE(2, 6); } \
  case (base) + 0x0E: MODIFY(word, op, 3, 6)                     \
  case (base) + 0x1E: MODIFY(ABX, op, 3, 7 + crossed(word, ABX))
#define STORE(address, value, bytes, cycles)                \
  {                                                         \
    const int stall = bus.write((address), (value), t);     \
    DONE(bytes, (cycles) + stall);                          \
  }
#define BRANCH(condition)                                                          \
  if (condition) {                                                                 \
    const Address next = static_cast<Address>(pc + 2);                             \
    pc = static_cast<Address>(next + static_cast<std::int8_t>(lo));                \
    t += 3 + 2 * crossed(next, pc);                                                \
    break;                                                                         \
  }                                                                                \
  DONE(2, 2)

    switch (code[0]) {
      READ_CASES(0x00, ora)
      READ_CASES(0x20, and_)
      READ_CASES(0x40, eor)
      READ_CASES(0x60, adc)
      READ_CASES(0xC0, cmp)
      READ_CASES(0xE0, sbc)
      READ_CASES_BUT_ABSOLUTE(0xA0, lda)
      case 0xAD: {  // LDA absolute
        // LDA $2002 / AND #$40 / BEQ or BNE back: waits for sprite 0. Go to the read that ends it.
        if (word == 0x2002 && pc >= 0x8000 && pc <= 0xFFF0 && code[3] == 0x29 && code[4] == 0x40 &&
            (code[5] == 0xF0 || code[5] == 0xD0) && code[6] == 0xF9) {
          const int period = 9 + 2 * crossed(static_cast<Address>(pc + 7), pc);
          t = bus.skip_poll(t, period, code[5] == 0xF0, limit);
        }
        lda(read(word));
        DONE(3, 4);
      }

      case 0x85: ram[lo] = a; DONE(2, 3);   // STA zero page
      case 0x95: ram[ZPX] = a; DONE(2, 4);  // STA zero page,X
      case 0x8D: STORE(word, a, 3, 4)       // STA absolute
      case 0x9D: STORE(ABX, a, 3, 5)        // STA absolute,X
      case 0x99: STORE(ABY, a, 3, 5)        // STA absolute,Y
      case 0x81: STORE(IZX, a, 2, 6)        // STA (indirect,X)
      case 0x91: STORE(IZY, a, 2, 6)        // STA (indirect),Y
      case 0x86: ram[lo] = x; DONE(2, 3);   // STX zero page
      case 0x96: ram[ZPY] = x; DONE(2, 4);  // STX zero page,Y
      case 0x8E: STORE(word, x, 3, 4)       // STX absolute
      case 0x84: ram[lo] = y; DONE(2, 3);   // STY zero page
      case 0x94: ram[ZPX] = y; DONE(2, 4);  // STY zero page,X
      case 0x8C: STORE(word, y, 3, 4)       // STY absolute

      case 0xA2: ldx(lo); DONE(2, 2);          // LDX immediate
      case 0xA6: ldx(ram[lo]); DONE(2, 3);     // LDX zero page
      case 0xB6: ldx(ram[ZPY]); DONE(2, 4);    // LDX zero page,Y
      case 0xAE: ldx(read(word)); DONE(3, 4);  // LDX absolute
      case 0xBE: { const Address e = ABY; ldx(read(e)); DONE(3, 4 + crossed(word, e)); }  // LDX abs,Y
      case 0xA0: ldy(lo); DONE(2, 2);          // LDY immediate
      case 0xA4: ldy(ram[lo]); DONE(2, 3);     // LDY zero page
      case 0xB4: ldy(ram[ZPX]); DONE(2, 4);    // LDY zero page,X
      case 0xAC: ldy(read(word)); DONE(3, 4);  // LDY absolute
      case 0xBC: { const Address e = ABX; ldy(read(e)); DONE(3, 4 + crossed(word, e)); }  // LDY abs,X

      case 0xE0: compare(x, lo); DONE(2, 2);          // CPX immediate
      case 0xE4: compare(x, ram[lo]); DONE(2, 3);     // CPX zero page
      case 0xEC: compare(x, read(word)); DONE(3, 4);  // CPX absolute
      case 0xC0: compare(y, lo); DONE(2, 2);          // CPY immediate
      case 0xC4: compare(y, ram[lo]); DONE(2, 3);     // CPY zero page
      case 0xCC: compare(y, read(word)); DONE(3, 4);  // CPY absolute
      case 0x24: bit(ram[lo]); DONE(2, 3);            // BIT zero page
      case 0x2C: bit(read(word)); DONE(3, 4);         // BIT absolute

      MODIFY_CASES(0x00, asl)
      MODIFY_CASES(0x20, rol)
      MODIFY_CASES(0x40, lsr)
      MODIFY_CASES(0x60, ror)
      MODIFY_CASES(0xC0, dec)
      MODIFY_CASES(0xE0, inc)
      case 0x0A: a = asl(a); DONE(1, 2);  // ASL accumulator
      case 0x2A: a = rol(a); DONE(1, 2);  // ROL accumulator
      case 0x4A: a = lsr(a); DONE(1, 2);  // LSR accumulator
      case 0x6A: a = ror(a); DONE(1, 2);  // ROR accumulator

      case 0xE8: set_zn(++x); DONE(1, 2);     // INX
      case 0xC8: set_zn(++y); DONE(1, 2);     // INY
      case 0xCA: set_zn(--x); DONE(1, 2);     // DEX
      case 0x88: set_zn(--y); DONE(1, 2);     // DEY
      case 0xAA: set_zn(x = a); DONE(1, 2);   // TAX
      case 0xA8: set_zn(y = a); DONE(1, 2);   // TAY
      case 0x8A: set_zn(a = x); DONE(1, 2);   // TXA
      case 0x98: set_zn(a = y); DONE(1, 2);   // TYA
      case 0xBA: set_zn(x = sp); DONE(1, 2);  // TSX
      case 0x9A: sp = x; DONE(1, 2);          // TXS

      case 0x18: carry = false; DONE(1, 2);     // CLC
      case 0x38: carry = true; DONE(1, 2);      // SEC
      case 0x58: others &= static_cast<Byte>(~kI); DONE(1, 2);  // CLI
      case 0x78: others |= kI; DONE(1, 2);      // SEI
      case 0xB8: overflow = false; DONE(1, 2);  // CLV
      case 0xD8: others &= static_cast<Byte>(~kD); DONE(1, 2);  // CLD
      case 0xF8: others |= kD; DONE(1, 2);      // SED
      case 0xEA: DONE(1, 2);                    // NOP

      case 0x48: push(a); DONE(1, 3);             // PHA
      case 0x08: push(get_p()); DONE(1, 3);       // PHP
      case 0x68: set_zn(a = pull()); DONE(1, 4);  // PLA
      case 0x28: set_p(pull()); DONE(1, 4);       // PLP

      case 0x10: BRANCH(!(sign & 0x80));  // BPL
      case 0x30: BRANCH(sign & 0x80);     // BMI
      case 0x50: BRANCH(!overflow);       // BVC
      case 0x70: BRANCH(overflow);        // BVS
      case 0x90: BRANCH(!carry);          // BCC
      case 0xB0: BRANCH(carry);           // BCS
      case 0xD0: BRANCH(zero != 0);       // BNE
      case 0xF0: BRANCH(zero == 0);       // BEQ

      case 0x4C:  // JMP absolute
        t += 3;
        // A jump to itself waits for the next interrupt.
        if (word == pc && t < limit) t += (limit - t + 2) / 3 * 3;
        pc = word;
        break;
      case 0x6C:  // JMP (indirect); the pointer's high byte comes from the same page
        pc = static_cast<Address>(
            read(word) | read(static_cast<Address>((word & 0xFF00) | ((word + 1) & 0xFF))) << 8);
        t += 5;
        break;
      case 0x20: {  // JSR
        const Address last = static_cast<Address>(pc + 2);
        push(static_cast<Byte>(last >> 8));
        push(static_cast<Byte>(last));
        pc = word;
        t += 6;
        break;
      }
      case 0x60:  // RTS
        pc = pull();
        pc = static_cast<Address>(pc | pull() << 8);
        ++pc;
        t += 6;
        break;
      case 0x40:  // RTI
        set_p(pull());
        pc = pull();
        pc = static_cast<Address>(pc | pull() << 8);
        t += 6;
        break;
      case 0x00: {  // BRK
        pc += 2;
        push(static_cast<Byte>(pc >> 8));
        push(static_cast<Byte>(pc));
        push(get_p() | kI | kD);  // nes-py sets bit 4, where the hardware's B would be
        others |= kI;
        pc = static_cast<Address>(bus.peek(kIrqVector) | bus.peek(kIrqVector + 1) << 8);
        t += 14;
        break;
      }
      default:  // an unofficial opcode
        DONE(1, 1);
    }

#undef ZPX
#undef ZPY
#undef ABX
#undef ABY
#undef POINTER
#undef IZX
#undef IZY
#undef DONE
#undef READ_CASES_BUT_ABSOLUTE
#undef READ_CASES
#undef MODIFY
#undef MODIFY_CASES
#undef STORE
#undef BRANCH
  }

  s_.pc = pc;
  s_.sp = sp;
  s_.a = a;
  s_.x = x;
  s_.y = y;
  s_.p = get_p();
  return t;
}

}  // namespace nes
