-- Writes are gathered while a step is planned and made together, once every key that they go to has the type they need:
-- a step reads the state before it, and one that meets a foreign key changes nothing. What was read by a command of its
-- type (`seen`) needs no other look. Fields of one row are written by one HSET, a desk that was changed once.
-- `planned` has four entries for each write: a table for each would be half of what a call leaves to the collector.
local prefix = string.match(totals, '^(.*)totals$')
local TYPES = {ZADD = 'zset', ZREM = 'zset', HSET = 'hash', HDEL = 'hash', XADD = 'stream'}
local now = whole(now_ms)
local planned, planned_end, rows, told, desks_read, desks_changed, lines_changed = {}, 0, {}, {}, {}, {}, {}
local types = {}
local note_heads -- given by those who move items in lines
-- A call leaves some 12 KB of garbage. Each collects about as much; else every twentieth would do it for all, in a millisecond.
local GARBAGE_KB = 14

local function seen(key, kind)
  types[key] = kind
end

-- One word or two, or a table of words, which is not the caller's any more.
local function write(command, key, first, second)
  local row = rows[key]
  if row and command == 'HSET' then
    for _, word in ipairs(first) do
      row[#row + 1] = word
    end
    return
  end
  if command == 'HSET' then
    rows[key] = first
  elseif row then
    rows[key] = nil -- what is deleted in between stands between
  end
  local at = planned_end
  planned[at + 1], planned[at + 2], planned[at + 3], planned[at + 4] = command, key, first or false, second or false
  planned_end = at + 4
end

-- What a moderator holds, or whether they may, has changed: the process that serves them looks.
local function tell(home, moderator)
  if home ~= '' then
    told[moderator .. '\n' .. home] = {prefix .. 'to:' .. home, 'desk\n' .. moderator}
  end
end

local function forget()
  planned, planned_end, rows, told, desks_read, desks_changed, lines_changed = {}, 0, {}, {}, {}, {}, {}
end

local function check_type(key, kind)
  if types[key] ~= kind then
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then
      error('PROTOCOL ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
    end
    types[key] = kind
  end
end

local function make_writes()
  for at = 1, planned_end, 4 do
    local command, key, first, second = planned[at], planned[at + 1], planned[at + 2], planned[at + 3]
    if second then
      redis.call(command, key, first, second)
    elseif not first then
      redis.call(command, key)
    elseif type(first) == 'table' then
      redis.call(command, key, unpack(first))
    else
      redis.call(command, key, first)
    end
  end
end

-- A message comes last, and one that may not be published keeps nothing from being written.
local function commit()
  for _, desk in pairs(desks_changed) do
    write('HSET', desk.key, {
      'by', desk.by, 'kind', desk.kind, 'home', desk.home, 'since', desk.since, 'version', whole(desk.version + 1),
      'walk', desk.partial and '3' or desk.walks and '1' or desk.left and '2' or '0',
    })
  end
  for at = 1, planned_end, 4 do
    local kind = TYPES[planned[at]]
    if kind then
      check_type(planned[at + 1], kind)
    end
  end
  make_writes()
  if note_heads then
    note_heads()
  end
  for _, message in pairs(told) do
    redis.pcall('PUBLISH', message[1], message[2])
  end
  forget()
  collectgarbage('step', GARBAGE_KB)
end
