/* SPDX-License-Identifier: MIT
 * What the Lua classes share: handles, answers, arguments.
 *
 * A function here is four moves: self, arguments, call, answer. Handles are born closed (object NULL), so an
 * error between the birth and the opening leaves something the collector can finish; q2_bind_self is the one
 * gate that refuses a closed one. */
#ifndef Q2_BIND_BIND_H
#define Q2_BIND_BIND_H

#include "qcow2.h"

#include <lauxlib.h>
#include <lua.h>

#define Q2_STORE_CLASS "qcow2.store"
#define Q2_IMAGE_CLASS "qcow2.image"
#define Q2_JOB_CLASS "qcow2.job"

struct q2_handle {
	void *object; /* NULL: closed */
};

/* Pushes a closed handle of the class, with one user value (a table for the Lua side). */
struct q2_handle *q2_bind_new(lua_State *L, const char *class_name);

/* The object of an open handle at `index`; raises for another type and for a closed one. */
void *q2_bind_self(lua_State *L, int index, const char *class_name);

/* nil, message, kind, errno (nil when the host was not the cause): 4 values. */
int q2_bind_fail(lua_State *L, const struct qcow2_error *err);

/* Pushes true, or the failure: what a function without a result answers. */
int q2_bind_done(lua_State *L, int rc, const struct qcow2_error *err);

/* What a step of long work answers: done, total, whether there is more; or the failure. `rc` as qcow2_job_step's. */
int q2_bind_step(lua_State *L, int rc, uint64_t done, uint64_t total, const struct qcow2_error *err);

/* A non-negative integer argument in bytes or entries; raises with the argument named. */
uint64_t q2_bind_unsigned(lua_State *L, int index, const char *name);

/* Is field `name` of the table at `index` true? false for a missing table. */
bool q2_bind_flag(lua_State *L, int index, const char *name);

/* Sets fields of the table on top. An unset offset (UINT64_MAX) sets nothing. */
void q2_bind_set_integer(lua_State *L, const char *name, uint64_t value);
void q2_bind_set_boolean(lua_State *L, const char *name, bool value);
void q2_bind_set_bytes(lua_State *L, const char *name, struct qcow2_bytes bytes);

/*
 * Adds functions whose first argument is an image to the table on top. While a job holds the image they answer nil, a
 * message and "conflict".
 */
void q2_bind_image_functions(lua_State *L, const luaL_Reg *functions);

/* Registers a class: metatable with methods in __index, and metamethods (both NULL-ended). */
void q2_bind_class(lua_State *L, const char *class_name, const luaL_Reg *methods, const luaL_Reg *meta);
/* More methods of a class that was registered. */
void q2_bind_methods(lua_State *L, const char *class_name, const luaL_Reg *methods);

/* ---- the parts, each adding its functions to the module table on top ---- */

void q2_bind_open_store(lua_State *L);
void q2_bind_open_image(lua_State *L);
void q2_bind_open_tables(lua_State *L);
void q2_bind_open_text(lua_State *L);
void q2_bind_open_listing(lua_State *L);
void q2_bind_open_records(lua_State *L);
void q2_bind_open_edit(lua_State *L);
void q2_bind_open_bitmap(lua_State *L);
void q2_bind_open_create(lua_State *L);
void q2_bind_open_job(lua_State *L);
void q2_bind_open_chain(lua_State *L);
void q2_bind_open_check(lua_State *L);
void q2_bind_open_amend(lua_State *L);
void q2_bind_open_line(lua_State *L);

#endif
