// Reads and writes the game's memory as gym-super-mario-bros does.
#include "game.hpp"

#include <algorithm>
#include <limits>
#include <string>

namespace nes {
namespace {

constexpr Byte kStart = 0x08;
constexpr int kMaxSkippedFrames = 20000;

// Addresses.
constexpr std::size_t kPlayerState = 0x000E;
constexpr std::size_t kEnemyTypes = 0x0016, kEnemies = 5;
constexpr std::size_t kFloatState = 0x001D;
constexpr std::size_t kXPage = 0x006D, kX = 0x0086;
constexpr std::size_t kYViewport = 0x00B5, kYPixel = 0x03B8;
constexpr std::size_t kChangeAreaTimer = 0x06DE;
constexpr std::size_t kStatus = 0x0756;
constexpr std::size_t kLife = 0x075A, kStage = 0x075C, kWorld = 0x075F, kArea = 0x0760;
constexpr std::size_t kGameMode = 0x0770;
constexpr std::size_t kPrelevelTimer = 0x07A0;
constexpr std::size_t kScore = 0x07DE, kCoins = 0x07ED, kTime = 0x07F8;

constexpr Byte kBowser = 0x2D, kFlagpole = 0x31;
constexpr Byte kStateDying = 0x0B, kStateDead = 0x06;
constexpr Byte kEndOfWorld = 2;
constexpr Byte kLastWorld = 7;  // counted from 0

[[noreturn]] void does_not_play(const std::string& where) {
  throw ConsoleError("the game did not get past " + where + " in " +
                     std::to_string(kMaxSkippedFrames) +
                     " frames: expected Super Mario Bros as gym-super-mario-bros 7.4.0 ships it; "
                     "check the cartridge image");
}

// A number with one decimal digit a byte: the concatenation of the bytes' values. A byte above 9,
// which the game never leaves there, counts with all its digits, as in gym-super-mario-bros.
std::int32_t digits(const std::array<Byte, kRamBytes>& ram, std::size_t address, std::size_t count) {
  std::int64_t value = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Byte byte = ram[address + i];
    value = value * (byte < 10 ? 10 : byte < 100 ? 100 : 1000) + byte;
    value = std::min<std::int64_t>(value, std::numeric_limits<std::int32_t>::max());
  }
  return static_cast<std::int32_t>(value);
}

}  // namespace

std::int32_t Game::time_left() const { return digits(console_.ram(), kTime, 3); }
bool Game::is_dying() const { return ram(kPlayerState) == kStateDying || ram(kYViewport) > 1; }
bool Game::is_dead() const { return ram(kPlayerState) == kStateDead; }
// The states in which the game ignores the controller: pipes, vines, walking, entering.
bool Game::is_busy() const { return ram(kPlayerState) <= 5 || ram(kPlayerState) == 7; }
bool Game::is_world_over() const { return ram(kGameMode) == kEndOfWorld; }

bool Game::is_flag() const {
  if (is_world_over()) return true;
  // A vine also sets the float state to 3, so a flagpole or Bowser must be there.
  for (std::size_t i = 0; i < kEnemies; ++i) {
    const Byte type = ram(kEnemyTypes + i);
    if (type == kBowser || type == kFlagpole) return ram(kFloatState) == 3;
  }
  return false;
}

GameState Game::state() const {
  const int y = ram(kYPixel);
  const bool above_screen = ram(kYViewport) < 1;
  GameState s;
  s.x_px = ram(kXPage) * 0x100 + ram(kX);
  s.y_px = above_screen ? 255 + (255 - y) : 255 - y;
  s.score = digits(console_.ram(), kScore, 6);
  s.coins = digits(console_.ram(), kCoins, 2);
  s.time_left = time_left();
  s.life = ram(kLife);
  s.status = std::min<int>(ram(kStatus), 2);
  s.world = ram(kWorld) + 1;
  s.stage = ram(kStage) + 1;
  s.area = ram(kArea) + 1;
  s.flag = is_flag();
  s.dying = is_dying() || is_dead();
  s.player_state = ram(kPlayerState);
  return s;
}

bool Game::is_won() const { return is_world_over() && ram(kWorld) == kLastWorld; }

bool Game::is_over(bool single_level) const {
  if (!single_level) return ram(kLife) == 0xFF || is_won();
  return is_dying() || is_dead() || is_flag();
}

void Game::start_level(LevelIndex level) {
  const int world = level / 4, stage = level % 4;
  // In worlds 1, 2, 4 and 7 a cut scene, the walk into a pipe, precedes the second to fourth stage
  // and has an area number of its own.
  const bool has_intro = world == 0 || world == 1 || world == 3 || world == 6;
  const int area = has_intro && stage >= 1 ? stage + 1 : stage;

  console_.reset();
  console_.frame(kStart);
  console_.frame(0);
  int frames = 0;
  while (time_left() == 0) {
    if (++frames > kMaxSkippedFrames) does_not_play("the title screen");
    console_.frame(kStart);
    if (level != kWholeGame) {
      console_.poke(kWorld, static_cast<Byte>(world));
      console_.poke(kStage, static_cast<Byte>(stage));
      console_.poke(kArea, static_cast<Byte>(area));
    }
    console_.frame(0);
    console_.poke(kPrelevelTimer, 0);
  }
  // The clock first ticks when Mario can be moved.
  for (std::int32_t time = time_left(); time_left() >= time;) {
    if (++frames > kMaxSkippedFrames) does_not_play("the start of the level");
    time = time_left();
    console_.frame(kStart);
    console_.frame(0);
  }
}

int Game::skip_unplayable(bool single_level) {
  int frames = 0;
  const auto skip = [&](const char* where) {
    if (++frames > kMaxSkippedFrames) does_not_play(where);
    console_.frame(0);
  };
  if (is_dying()) {
    console_.poke(kPlayerState, kStateDead);  // skips the dying animation
    skip("a death");
  }
  if (!single_level && is_world_over()) {
    for (const std::int32_t time = time_left(); time_left() == time;) skip("the end of a world");
  }
  const Byte timer = ram(kChangeAreaTimer);
  if (timer > 1 && timer < 255) console_.poke(kChangeAreaTimer, 1);
  while (is_busy() || is_world_over()) {
    console_.poke(kPrelevelTimer, 0);
    skip("a change of area");
  }
  return frames;
}

}  // namespace nes
