/* SPDX-License-Identifier: MIT
 * Jobs that check and repair: what they found, in batches, and what became of it. */
#include "bind/bind.h"

#include <limits.h>
#include <string.h>

static struct qcow2_job *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_JOB_CLASS);
}

static const char *severity_word(enum qcow2_severity severity)
{
	static const char *const words[] = {
		[QCOW2_SEVERITY_NOTE] = "note",
		[QCOW2_SEVERITY_LEAK] = "leak",
		[QCOW2_SEVERITY_CORRUPTION] = "corruption",
		[QCOW2_SEVERITY_UNREADABLE] = "unreadable",
	};
	return words[severity];
}

/* core.check(image, { most, threads }) */
static int l_check(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	luaL_checktype(L, 2, LUA_TTABLE);
	lua_getfield(L, 2, "most");
	lua_getfield(L, 2, "threads");
	lua_Integer most = luaL_optinteger(L, -2, 0), threads = luaL_optinteger(L, -1, 0);
	luaL_argcheck(L, most >= 0, 2, "most is out of range");
	luaL_argcheck(L, threads >= 0 && threads <= INT_MAX, 2, "threads is out of range");
	struct qcow2_check_options options = {.struct_size = sizeof options,
					      .most = (uint64_t)most,
					      .threads = (unsigned)threads};
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	int rc = qcow2_check_new(image, &options, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* job:result() -> of a check; of other jobs nothing */
static int l_result(lua_State *L)
{
	const struct qcow2_check_result *result = qcow2_check_result(self(L));
	if (!result)
		return 0;
	lua_createtable(L, 0, 12);
	q2_bind_set_integer(L, "corruptions", result->corruptions);
	q2_bind_set_integer(L, "leaks", result->leaks);
	q2_bind_set_integer(L, "check_errors", result->unreadable);
	q2_bind_set_integer(L, "omitted", result->omitted);
	q2_bind_set_boolean(L, "incomplete", result->incomplete);
	q2_bind_set_integer(L, "image_end_offset", result->image_end_offset);
	q2_bind_set_integer(L, "total_clusters", result->total_clusters);
	q2_bind_set_integer(L, "allocated_clusters", result->allocated_clusters);
	q2_bind_set_integer(L, "fragmented_clusters", result->fragmented_clusters);
	q2_bind_set_integer(L, "compressed_clusters", result->compressed_clusters);
	lua_newtable(L);
	for (int i = 0; i < QCOW2_PROBLEM_COUNT; i++)
		if (qcow2_check_found(self(L), (enum qcow2_problem)i))
			q2_bind_set_integer(L, qcow2_problem_facts((enum qcow2_problem)i)->word,
					    qcow2_check_found(self(L), (enum qcow2_problem)i));
	lua_setfield(L, -2, "found");
	return 1;
}

static void set_number(lua_State *L, const char *name, uint64_t value)
{
	if (value != QCOW2_NONE)
		q2_bind_set_integer(L, name, value);
}

static void set_word(lua_State *L, const char *name, const char *word)
{
	if (!word)
		return;
	lua_pushstring(L, word);
	lua_setfield(L, -2, name);
}

static void set_repair(lua_State *L, const struct qcow2_problem_facts *facts)
{
	q2_bind_set_boolean(L, "repairable", facts->repair != QCOW2_REPAIR_NOT);
	q2_bind_set_boolean(L, "on_request", facts->repair == QCOW2_REPAIR_ASKED);
}

static void push_finding(lua_State *L, const struct qcow2_finding *finding)
{
	const struct qcow2_problem_facts *facts = qcow2_problem_facts(finding->problem);
	lua_createtable(L, 0, 10);
	set_word(L, "kind", facts->word);
	set_word(L, "severity", severity_word(facts->severity));
	set_repair(L, facts);
	q2_bind_set_integer(L, "count", finding->count);
	set_number(L, "host_offset", finding->host_offset);
	set_number(L, "host_length", finding->host_length);
	set_number(L, "guest_offset", finding->guest_offset);
	set_number(L, "guest_length", finding->guest_length);
	/* Beside a number of references any refcount is possible, the largest of 64 bits too. */
	if (finding->refcount != QCOW2_NONE || finding->references != QCOW2_NONE)
		q2_bind_set_integer(L, "refcount", finding->refcount);
	set_number(L, "references", finding->references);
	set_number(L, "entry_offset", finding->entry_offset);
	set_number(L, "index", finding->index);
	set_number(L, "snapshot", finding->snapshot);
	/* Raw words may be any number; they come with the place where they lie, or not at all. */
	if (finding->entry_offset != QCOW2_NONE && finding->entry != QCOW2_NONE)
		q2_bind_set_integer(L, "entry", finding->entry);
	set_number(L, "bitmap", finding->bitmap);
	set_word(L, "first", finding->first);
	set_word(L, "second", finding->second);
	if (finding->os_errno)
		set_word(L, "reason", strerror(finding->os_errno));
}

/* job:findings(first, count) -> array of up to `count` records from number `first` (counted from 0) on: those of a check,
 * or the flags that a repair put right */
static int l_findings(lua_State *L)
{
	const struct qcow2_job *job = self(L);
	uint64_t first = q2_bind_unsigned(L, 2, "first"), count = q2_bind_unsigned(L, 3, "count");
	lua_newtable(L);
	for (uint64_t i = 0; i < count; i++) {
		const struct qcow2_finding *finding = qcow2_check_finding(job, first + i);
		if (!finding)
			finding = qcow2_repair_finding(job, first + i);
		if (!finding)
			break;
		push_finding(L, finding);
		lua_rawseti(L, -2, (lua_Integer)i + 1);
	}
	return 1;
}

/* job:accept(): it was found sound, so the marks that say otherwise go */
static int l_accept(lua_State *L)
{
	struct qcow2_error err;
	return q2_bind_done(L, qcow2_check_accept(self(L), &err), &err);
}

/* ---- repair ------------------------------------------------------------------------------------ */

/* Raises the level of every kind in field `kinds` of the table at 2. */
static void ask_for_kinds(lua_State *L, uint8_t wanted[QCOW2_PROBLEM_COUNT])
{
	if (lua_getfield(L, 2, "kinds") == LUA_TNIL) {
		lua_pop(L, 1);
		return;
	}
	luaL_checktype(L, -1, LUA_TTABLE);
	lua_Integer count = luaL_len(L, -1);
	for (lua_Integer n = 1; n <= count; n++) {
		lua_rawgeti(L, -1, n);
		const char *word = lua_tostring(L, -1);
		int i = 0;
		while (word && i < QCOW2_PROBLEM_COUNT &&
		       strcmp(word, qcow2_problem_facts((enum qcow2_problem)i)->word))
			i++;
		luaL_argcheck(L, word && i < QCOW2_PROBLEM_COUNT, 2, "kinds has a word that is no kind");
		wanted[i] = QCOW2_REPAIR_ASKED;
		lua_pop(L, 1);
	}
	lua_pop(L, 1);
}

/* core.repair(check, { leaks, all, kinds = array of words }) */
static int l_repair(lua_State *L)
{
	struct qcow2_error err;
	uint8_t wanted[QCOW2_PROBLEM_COUNT];
	struct qcow2_job *check = self(L);
	luaL_checktype(L, 2, LUA_TTABLE);
	qcow2_repair_want(wanted, q2_bind_flag(L, 2, "leaks"), q2_bind_flag(L, 2, "all"));
	ask_for_kinds(L, wanted);
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	/* The check lives as long as its repair. */
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 1);
	int rc = qcow2_repair_new(check, wanted, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* how many COPIED flags were put right */
static int l_flags_fixed(lua_State *L)
{
	lua_pushinteger(L, (lua_Integer)qcow2_repair_flags_fixed(self(L)));
	return 1;
}

/* core.problems: array of { kind=, severity=, repairable=, on_request=, meaning=, loss= } */
static void push_problems(lua_State *L)
{
	const struct qcow2_problem_facts *facts;
	lua_newtable(L);
	for (int i = 0; (facts = qcow2_problem_facts((enum qcow2_problem)i)); i++) {
		lua_createtable(L, 0, 5);
		set_word(L, "kind", facts->word);
		set_word(L, "severity", severity_word(facts->severity));
		set_repair(L, facts);
		set_word(L, "meaning", facts->meaning);
		set_word(L, "loss", facts->loss);
		lua_rawseti(L, -2, i + 1);
	}
}

void q2_bind_open_check(lua_State *L)
{
	static const luaL_Reg methods[] = {{"result", l_result},
					   {"findings", l_findings},
					   {"accept", l_accept},
					   {"flags_fixed", l_flags_fixed},
					   {NULL, NULL}};
	static const luaL_Reg functions[] = {{"check", l_check}, {"repair", l_repair}, {NULL, NULL}};
	q2_bind_methods(L, Q2_JOB_CLASS, methods);
	luaL_setfuncs(L, functions, 0);
	push_problems(L);
	lua_setfield(L, -2, "problems");
}
