// Python bindings: mario.game._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <memory>
#include <vector>

#include "cartridge.hpp"
#include "console.hpp"
#include "palette.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using nes::Byte;

// Each C++ error becomes the class of the same name in mario/errors.py.
void translate_errors(const std::exception_ptr& error, void*) {
  const auto raise = [](const char* name, const char* message) {
    nb::object type = nb::module_::import_("mario.errors").attr(name);
    PyErr_SetString(type.ptr(), message);
  };
  try {
    std::rethrow_exception(error);
  } catch (const nes::RomError& e) {
    raise("RomError", e.what());
  } catch (const nes::SaveStateError& e) {
    raise("SaveStateError", e.what());
  } catch (const nes::ConsoleError& e) {
    raise("ConsoleError", e.what());
  }
}

const Byte* bytes_of(const nb::bytes& bytes) { return reinterpret_cast<const Byte*>(bytes.c_str()); }

nb::bytes to_bytes(const std::vector<Byte>& data) {
  return nb::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

// An array that owns its memory.
template <typename... Shape>
auto owned_array(std::unique_ptr<Byte[]> data, std::initializer_list<std::size_t> shape) {
  Byte* const pointer = data.release();
  nb::capsule owner(pointer, [](void* p) noexcept { delete[] static_cast<Byte*>(p); });
  return nb::ndarray<nb::numpy, Byte, nb::c_contig>(pointer, shape, owner);
}

// A console with its picture, which is drawn at the end of a step or when it is asked for.
class PyConsole {
 public:
  explicit PyConsole(const nb::bytes& rom)
      : console_(nes::Cartridge::load(bytes_of(rom), rom.size())) {}

  void reset() {
    console_.reset();
    drawn_ = false;
  }
  void step(unsigned buttons, long long frames, bool draw) {
    if (buttons > 0xFF || frames < 0)
      throw nes::ConsoleError("step(buttons=" + std::to_string(buttons) + ", frames=" +
                              std::to_string(frames) + "): expected buttons 0-255 and frames >= 0");
    if (frames == 0) return;
    for (long long i = 1; i < frames; ++i) console_.frame(static_cast<Byte>(buttons));
    console_.frame(static_cast<Byte>(buttons), draw ? colours_.data() : nullptr);
    drawn_ = draw;
  }
  void poke(long long address, long long value) {
    if (address < 0 || address >= nes::kRamBytes || value < 0 || value > 0xFF)
      throw nes::ConsoleError("poke(address=" + std::to_string(address) + ", value=" +
                              std::to_string(value) + "): expected address 0-2047, value 0-255");
    console_.poke(static_cast<std::size_t>(address), static_cast<Byte>(value));
  }
  auto screen_rgb() {
    auto out = std::make_unique<Byte[]>(nes::kScreenPixels * 3);
    Byte* p = out.get();
    for (const Byte colour : colours()) {
      const std::uint32_t rgb = nes::kPaletteRgb[colour];
      *p++ = static_cast<Byte>(rgb >> 16);
      *p++ = static_cast<Byte>(rgb >> 8);
      *p++ = static_cast<Byte>(rgb);
    }
    return owned_array(std::move(out), {nes::kScreenHeight, nes::kScreenWidth, 3});
  }
  auto screen_grey() {
    auto out = std::make_unique<Byte[]>(nes::kScreenPixels);
    Byte* p = out.get();
    for (const Byte colour : colours()) *p++ = nes::kGreyShades[colour];
    return owned_array(std::move(out), {nes::kScreenHeight, nes::kScreenWidth});
  }
  nb::bytes save_state() const { return to_bytes(console_.save()); }
  void load_state(const nb::bytes& state) {
    console_.load(bytes_of(state), state.size());
    drawn_ = false;
  }
  const nes::Console& console() const { return console_; }

 private:
  const std::array<Byte, nes::kScreenPixels>& colours() {
    if (!drawn_) {
      console_.redraw(colours_.data(), nes::kColourShades);
      drawn_ = true;
    }
    return colours_;
  }

  nes::Console console_;
  std::array<Byte, nes::kScreenPixels> colours_{};  // number of each pixel's colour
  bool drawn_ = false;
};

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native NES console and the batch of games on it.";
  nb::register_exception_translator(translate_errors);

  nb::class_<PyConsole>(m, "Console")
      .def(nb::init<const nb::bytes&>(), "rom"_a)
      .def("reset", &PyConsole::reset)
      .def("step", &PyConsole::step, "buttons"_a, "frames"_a = 1, "draw"_a = true,
           nb::call_guard<nb::gil_scoped_release>())
      .def("poke", &PyConsole::poke, "address"_a, "value"_a)
      .def_prop_ro("ram",
                   [](nb::handle self) {
                     const auto& console = nb::cast<const PyConsole&>(self).console();
                     return nb::ndarray<nb::numpy, const Byte, nb::shape<nes::kRamBytes>>(
                         console.ram().data(), {nes::kRamBytes}, self);
                   })
      .def("screen_rgb", &PyConsole::screen_rgb)
      .def("screen_grey", &PyConsole::screen_grey)
      .def("save_state", &PyConsole::save_state)
      .def("load_state", &PyConsole::load_state, "state"_a);
}
